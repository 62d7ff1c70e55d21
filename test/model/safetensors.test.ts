/** The file format: every dtype, views, hostile headers, and that a crash leaves the old file. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { CheckpointError } from "../../src/errors.ts";
import { SafetensorsFile, writeSafetensors } from "../../src/model/safetensors.ts";
import { cast, slice, transpose } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";

const root = mkdtempSync(join(tmpdir(), "grove-safetensors-"));
afterAll(() => rmSync(root, { recursive: true }));

function withHeader(header: unknown, dataBytes: number): string {
  const path = join(root, "hostile.safetensors");
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, Buffer.alloc(dataBytes)]));
  return path;
}

test("all dtypes, strided views, scalars and empty tensors come back as they were", () => {
  scope(() => {
    const base = fromArray([1, 0, 3, 4, 250, 6], [2, 3]);
    const dtypes: DType[] = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool"];
    const tensors = Object.fromEntries(dtypes.map((dtype) => [`the ${dtype}`, cast(base, dtype)]));
    tensors.transposed = transpose(cast(base, "bfloat16"), 0, 1);
    tensors.rows = slice(base, 0, 1, 2);
    tensors.scalar = fromArray([7], []);
    tensors.empty = slice(base, 0, 0, 0);
    const path = join(root, "all.safetensors");
    writeSafetensors(
      path,
      Object.entries(tensors).map(([name, tensor]) => ({
        name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        read: () => tensor,
      })),
      { format: "pt", note: "ü" },
    );
    using file = new SafetensorsFile(path);
    expect(file.metadata).toEqual({ format: "pt", note: "ü" });
    expect(file.names()).toEqual(Object.keys(tensors));
    for (const [name, tensor] of Object.entries(tensors)) {
      const read = file.tensor(name);
      expect([read.dtype, read.shape, read.toNumbers()]).toEqual([tensor.dtype, tensor.shape, tensor.toNumbers()]);
    }
    expect(() => file.tensor("other")).toThrow('no tensor named "other"');
  });
});

test("a write that fails leaves the old file and no temporary one", () => {
  scope(() => {
    const folder = mkdtempSync(join(root, "failing-"));
    const path = join(folder, "x.safetensors");
    const good = fromArray([1, 2], [2]);
    writeSafetensors(path, [{ name: "x", dtype: "float32", shape: [2], read: () => good }]);
    const before = readFileSync(path);
    const read = () => {
      throw new Error("device lost");
    };
    expect(() => writeSafetensors(path, [{ name: "x", dtype: "float32", shape: [2], read }])).toThrow("device lost");
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(folder)).toEqual(["x.safetensors"]);
  });
});

test.each([
  ["no JSON", "{", "is not valid JSON"],
  ["an unknown dtype", { x: { dtype: "F8_E4M3", shape: [4], data_offsets: [0, 4] } }, "unsupported dtype F8_E4M3"],
  [
    "a range beyond the end",
    { x: { dtype: "F32", shape: [4], data_offsets: [0, 16] } },
    "needs 16 bytes, its range is [0, 16) of 8",
  ],
  ["a range that does not fit the shape", { x: { dtype: "F32", shape: [1], data_offsets: [0, 8] } }, "needs 4 bytes"],
  ["a negative offset", { x: { dtype: "F32", shape: [1], data_offsets: [-4, 0] } }, "damaged"],
  ["an entry without a shape", { x: { dtype: "F32" } }, "malformed header entry"],
])("refuses %s", (_what, header, message) => {
  const path = withHeader(header, 8);
  expect(() => new SafetensorsFile(path)).toThrow(CheckpointError);
  expect(() => new SafetensorsFile(path)).toThrow(message);
});

test("refuses a header length beyond the file", () => {
  const path = join(root, "long.safetensors");
  writeFileSync(path, Buffer.from([255, 255, 255, 0, 0, 0, 0, 0, 123, 125]));
  expect(() => new SafetensorsFile(path)).toThrow("header of 16777215 bytes does not fit a file of 10 bytes");
});
