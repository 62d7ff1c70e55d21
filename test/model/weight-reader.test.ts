/** Reading stored tensors into place: any dtype to any dtype, in pieces of any size, into parts of larger tensors. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { NativeError } from "../../src/errors.ts";
import { SafetensorsFile, writeSafetensors } from "../../src/model/safetensors.ts";
import { readWeights } from "../../src/model/weight-reader.ts";
import { cast, full, randn, slice, transpose, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, MappedFile, type Tensor } from "../../src/torch/tensor.ts";

const root = mkdtempSync(join(tmpdir(), "grove-reader-"));
afterAll(() => rmSync(root, { recursive: true }));

const SIZES = [1, 7, 4096, 65_537, 3_000_001]; // the last takes several of the reader's chunks of 4 MiB

function writeFile(dtype: DType): { path: string; values: Map<string, number[]> } {
  const path = join(root, `${dtype}.safetensors`);
  return scope(() => {
    using generator = new Generator(7);
    const tensors = SIZES.map((size) => cast(randn([size], { generator }), dtype));
    writeSafetensors(
      path,
      tensors.map((tensor, i) => ({ name: `t${i}`, dtype, shape: tensor.shape, read: () => tensor })),
    );
    return { path, values: new Map(tensors.map((tensor, i) => [`t${i}`, tensor.toNumbers()])) };
  });
}

test.each([
  ["bfloat16", "bfloat16", undefined],
  ["float32", "float32", undefined],
  ["bfloat16", "float32", undefined],
  ["bfloat16", "float32", 4098], // pieces that end inside tensors
  ["float32", "bfloat16", 1000],
  ["float16", "float64", 2],
] as const)("%s in the file, %s in memory, staging of %s bytes", (stored, wanted, stagingBytes) => {
  const sizes = stagingBytes === 2 ? SIZES.slice(0, 3) : stagingBytes === undefined ? SIZES : SIZES.slice(0, 4);
  const { path, values } = writeFile(stored);
  scope(() => {
    using file = new SafetensorsFile(path);
    const whole = sizes.map((size) => full([size + 2], -9, { dtype: wanted })); // the neighbours must stay
    const reads = whole.map((tensor, i) => ({ file, name: `t${i}`, into: slice(tensor, 0, 1, (sizes[i] ?? 0) + 1) }));
    readWeights(reads, stagingBytes === undefined ? {} : { stagingBytes });
    whole.forEach((tensor, i) => {
      const found = tensor.toNumbers();
      expect([found[0], found.at(-1)]).toEqual([-9, -9]);
      const expected = values.get(`t${i}`) ?? [];
      const rounded = wanted === "bfloat16" ? bfloat16(expected) : expected;
      expect(found.slice(1, -1)).toEqual(rounded);
    });
  });
});

test.each([1, 3, 16])("%d threads read the same", (threads) => {
  const { path, values } = writeFile("float32");
  scope(() => {
    using file = new SafetensorsFile(path);
    const tensors = SIZES.map((size) => zeros([size]));
    MappedFile.read(
      tensors.map((tensor, i) => file.read(`t${i}`, tensor)),
      { threads },
    );
    tensors.forEach((tensor, i) => void expect(tensor.toNumbers()).toEqual(values.get(`t${i}`)));
  });
});

test("misuse is refused: bytes outside the file, tensors with gaps, no threads, a closed file", () => {
  const { path } = writeFile("float32");
  scope(() => {
    const file = new SafetensorsFile(path);
    const read = (into: Tensor, first = 0, threads = 2) => MappedFile.read([file.read("t2", into, first)], { threads });
    expect(() => read(zeros([4096]), 3_100_000)).toThrow(NativeError);
    expect(() => read(zeros([4096]), 3_100_000)).toThrow("lie outside the file");
    expect(() => read(transpose(zeros([2, 3]), 0, 1))).toThrow("contiguous");
    expect(() => read(zeros([4]), 0, 0)).toThrow("1 to 64 threads");
    const into = file.read("t2", zeros([4]));
    MappedFile.read([]); // nothing to do
    file[Symbol.dispose]();
    expect(() => MappedFile.read([into])).toThrow();
  });
});

function bfloat16(values: readonly number[]): number[] {
  return scope(() => cast(fromArray(Float32Array.from(values), [values.length]), "bfloat16").toNumbers());
}
