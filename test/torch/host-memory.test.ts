import { afterEach, expect, test } from "vitest";
import { NativeError } from "../../src/errors.ts";
import { cudaAvailable } from "../../src/torch/cuda.ts";
import { HostMemory } from "../../src/torch/host-memory.ts";
import { slice, to, transpose, viewDtype } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";

let memory: HostMemory;
afterEach(() => memory[Symbol.dispose]());

const bytesIn = (begin: number, end: number) => Buffer.concat(memory.ranges(begin, end));

test("tensors' bytes lie where they were put, over the ends of blocks too", () => {
  memory = new HostMemory(1001, { blockBytes: 64 });
  scope(() => {
    const floats = Float32Array.from({ length: 131 }, (_, i) => Math.sin(i));
    const halves = to(fromArray(floats, [131]), { dtype: "bfloat16" });
    memory.copyFrom(fromArray(floats, [131]), 3);
    memory.copyFrom(halves, 3 + 4 * 131);
    expect(bytesIn(3, 3 + 4 * 131).equals(Buffer.from(floats.buffer))).toBe(true);
    const bits = viewDtype(halves, "int16").toArray();
    expect(bytesIn(527, 527 + 2 * 131).equals(Buffer.from(bits.buffer))).toBe(true);
    expect(bytesIn(789, 1001).every((byte) => byte === 0)).toBe(true);
  });
  expect(memory.ranges(60, 130).map(({ length }) => length)).toEqual([4, 64, 2]);
  expect(memory.ranges(7, 7)).toEqual([]);
});

test("a copy is no view: the tensor may change", () => {
  memory = new HostMemory(16);
  scope(() => {
    const rows = fromArray([1, 2, 3, 4, 5, 6], [3, 2]);
    memory.copyFrom(slice(rows, 0, 1, 3), 0);
    rows.free();
  });
  expect([...new Float32Array(Uint8Array.from(bytesIn(0, 16)).buffer)]).toEqual([3, 4, 5, 6]);
});

test("what does not fit, or lies in pieces, is refused", () => {
  memory = new HostMemory(16);
  scope(() => {
    expect(() => memory.copyFrom(fromArray([1, 2, 3, 4], [4]), 4)).toThrow(/outside the memory/);
    expect(() => memory.copyFrom(transpose(fromArray([1, 2, 3, 4], [2, 2]), 0, 1), 0)).toThrow(NativeError);
  });
});

test.skipIf(cudaAvailable())("page-locked memory needs CUDA", () => {
  memory = new HostMemory(0);
  expect(() => new HostMemory(16, { pinned: true })).toThrow(/built without CUDA|CUDA/);
});
