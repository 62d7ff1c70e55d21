/** What cuda.ts promises where there is no CUDA; the rest is in cuda.gpu.test.ts. */
import { describe, expect, test } from "vitest";
import { AddonError, NativeError } from "../../src/errors.ts";
import * as cuda from "../../src/torch/cuda.ts";
import { ones, randn } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";

test("versions name a libtorch that Grove supports", () => {
  expect(cuda.versions().torch).toMatch(/^2\.1[123]\./);
});

test("setNumThreads takes effect, and refuses nonsense", () => {
  const before = cuda.versions().threads;
  cuda.setNumThreads(1);
  expect(cuda.versions().threads).toBe(1);
  cuda.setNumThreads(before);
  for (const threads of [0, -1, 1.5, 1e9]) expect(() => cuda.setNumThreads(threads)).toThrow(NativeError);
  expect(cuda.versions().threads).toBe(before);
});

describe.skipIf(cuda.cudaAvailable())("without CUDA", () => {
  test("queries answer, waiting does nothing", () => {
    expect(cuda.deviceCount()).toBe(0);
    cuda.synchronize();
    cuda.emptyCache();
    cuda.resetPeakMemory();
    expect(cuda.memoryStats()).toEqual({ allocated: 0, reserved: 0, peak: 0, peakReserved: 0, free: 0, total: 0 });
  });

  test("what needs a device is an error that says so", () => {
    for (const make of [
      () => new cuda.Stream(),
      () => new cuda.Event(),
      () => new cuda.CudaGraph(),
      () => cuda.deviceName(),
    ]) {
      expect(make).toThrow(NativeError);
      expect(make).toThrow(/CUDA/);
    }
    for (const make of [
      () => new Generator(1, "cuda"),
      () => ones([1], { device: "cuda" }),
      () => randn([1], { device: "cuda:3" }),
      () => fromArray([1], [1], { device: "cuda" }),
      () => cuda.setDevice(1),
    ]) {
      expect(make).toThrow(AddonError);
      expect(make).toThrow(/^device cuda\S* cannot be used: (libtorch \S+ is a build without CUDA|no NVIDIA GPU)/);
    }
  });

  test("pinned memory is ordinary memory", () => {
    scope(() => expect(fromArray([1, 2], [2], { pinned: true }).toNumbers()).toEqual([1, 2]));
  });
});
