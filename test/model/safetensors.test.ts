/** The file format: every dtype, views, hostile headers, and that a crash leaves the old file. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { CheckpointError } from "../../src/errors.ts";
import { openShards, SafetensorsFile, writeSafetensors } from "../../src/model/safetensors.ts";
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

test("a tensor that is not what was declared is not written", () => {
  scope(() => {
    const path = join(root, "declared.safetensors");
    const read = () => fromArray([1, 2], [2]);
    for (const [dtype, shape] of [
      ["float32", [3]],
      ["int32", [2]],
    ] as const) {
      expect(() => writeSafetensors(path, [{ name: "x", dtype, shape, read }])).toThrow(/tensor "x" is not the/);
    }
    expect(readdirSync(root).filter((name) => name.startsWith("declared"))).toEqual([]);
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
  ["sizes below 0", { x: { dtype: "F32", shape: [-1, -2], data_offsets: [0, 8] } }, "malformed header entry"],
  [
    "sizes that are not whole",
    { x: { dtype: "F32", shape: [0.5, 4], data_offsets: [0, 8] } },
    "malformed header entry",
  ],
  ["one offset", { x: { dtype: "F32", shape: [1], data_offsets: [0] } }, "malformed header entry"],
  [
    "a dtype that every object has",
    { x: { dtype: "toString", shape: [1], data_offsets: [0, 4] } },
    "unsupported dtype",
  ],
  ["no dtype", { x: { shape: [1], data_offsets: [0, 4] } }, "unsupported dtype undefined"],
  ["null", "null", "is not a JSON object"],
  ["a list", [], "is not a JSON object"],
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

test("names what is no file of weights: a folder, a Git LFS pointer", () => {
  expect(() => new SafetensorsFile(root)).toThrow("is not a file");
  const path = join(root, "pointer.safetensors");
  writeFileSync(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4966202512\n");
  expect(() => new SafetensorsFile(path)).toThrow(CheckpointError);
  expect(() => new SafetensorsFile(path)).toThrow("is a Git LFS pointer in place of the weights; run `git lfs pull`");
});

/** A folder with these files of one float each, and an index of them. */
function shardFolder(shards: Record<string, string>, index: unknown): string {
  const folder = mkdtempSync(join(root, "shards-"));
  for (const [file, tensor] of Object.entries(shards)) {
    const read = () => fromArray([file.length], [1]);
    writeSafetensors(join(folder, file), [{ name: tensor, dtype: "float32", shape: [1], read }]);
  }
  writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify(index));
  return folder;
}

const openFiles = () => readdirSync("/proc/self/fd").length;

test("shards that do not open leave none open", () => {
  const shards = { "a.safetensors": "x", "b.safetensors": "y", "c.safetensors": "x" };
  const missing = shardFolder(shards, { weight_map: { x: "a.safetensors", y: "b.safetensors", z: "d.safetensors" } });
  const twice = shardFolder(shards, { weight_map: { x: "a.safetensors", z: "c.safetensors" } });
  const before = openFiles();
  expect(() => openShards(missing)).toThrow(/d\.safetensors: no such file/);
  expect(() => openShards(twice)).toThrow(/tensor "x" is also in .*a\.safetensors/);
  expect(openFiles()).toBe(before);
});

test.each([null, {}, { weight_map: {} }, { weight_map: { x: 3 } }])("refuses the index %j", (index) => {
  const folder = shardFolder({}, index);
  expect(() => openShards(folder)).toThrow(CheckpointError);
  expect(() => openShards(folder)).toThrow(/model\.safetensors\.index\.json: (has no weight_map|is not a JSON object)/);
});

test("one file goes before shards that an earlier save has left, as in transformers", () => {
  const folder = shardFolder({ "model.safetensors": "new", "old.safetensors": "x" }, { weight_map: { x: "gone" } });
  const { files, fileOf } = openShards(folder);
  expect([...fileOf.keys()]).toEqual(["new"]);
  for (const file of files) file[Symbol.dispose]();
});
