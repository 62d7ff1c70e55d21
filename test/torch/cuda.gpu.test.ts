/** Streams, events, graphs, pinned memory, generators and memory statistics on a CUDA device. */
import { describe, expect } from "vitest";
import { NativeError } from "../../src/errors.ts";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import * as cuda from "../../src/torch/cuda.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";

const device = "cuda" as const;

gpuTest("the device is seen, and computes what the CPU does", () => {
  expect(cuda.deviceCount()).toBeGreaterThan(0);
  expect(cuda.deviceName().length).toBeGreaterThan(0);
  scope(() => {
    const x = fromArray([1, 2, 3, 4], [2, 2], { device });
    expect(x.device).toBe("cuda:0");
    expect(ops.matmul(x, x).toNumbers()).toEqual([7, 10, 15, 22]);
    expect(ops.to(x, { device: "cpu" }).device).toBe("cpu");
    expect(() => ops.add(x, fromArray([1, 2, 3, 4], [2, 2]))).toThrow(NativeError);
  });
});

gpuTest("autograd runs on the device", () => {
  scope(() => {
    const w = ops.ones([2, 2], { device }).setRequiresGrad(true);
    const flat = ops.zeros([4], { device });
    w.setGrad(ops.reshape(flat, [2, 2]));
    for (let pass = 0; pass < 2; pass++) backward([enableGrad(() => ops.sum(ops.mul(w, 3)))], [null]);
    expect(flat.toNumbers()).toEqual([6, 6, 6, 6]);
  });
});

describe("host copies", () => {
  // Other tests fall back to operators of libtorch where a kernel is missing, and would pass without a word.
  gpuTest("the library of our own kernels is loaded", () => expect(cuda.versions().kernels).toBe(true));

  gpuTest("large arrays arrive whole, one upload after another from the same staging memory", () => {
    const arrays = [1, 2, 3].map((seed) => Float32Array.from({ length: 700_001 }, (_, i) => ((i * seed) % 253) - 100));
    scope(() => {
      const [whole, half] = (["float32", "bfloat16"] as const).map((dtype) =>
        arrays.map((data) => fromArray(data, [data.length], { device, dtype })),
      );
      for (const [i, data] of arrays.entries()) {
        expect(whole?.[i]?.toArray()).toEqual(data);
        expect(half?.[i]?.toArray()).toEqual(data);
      }
    });
  });

  gpuTest("pinned memory in both directions, bfloat16 included", () => {
    scope(() => {
      const data = Float32Array.from({ length: 1 << 16 }, (_, i) => (i % 256) - 128);
      const host = fromArray(data, [data.length], { pinned: true });
      const there = ops.to(host, { device, nonBlocking: true });
      expect(there.toArray()).toEqual(data);
      expect(fromArray(data, [data.length], { device, dtype: "bfloat16" }).toArray()).toEqual(data);
      const back = ops.empty([data.length], { pinned: true });
      ops.copy_(back, there, true);
      cuda.synchronize();
      expect(back.toArray()).toEqual(data);
    });
  });
});

gpuTest("generators on the device are reproducible and independent of each other", () => {
  scope(() => {
    using first = new Generator(5, device);
    using second = new Generator(5, device);
    const draw = (generator: Generator): number[] => ops.randn([100], { device, generator }).toNumbers();
    const start = draw(first);
    expect(draw(second)).toEqual(start);
    const state = first.state();
    const next = draw(first);
    second.setState(state);
    expect(draw(second)).toEqual(next);
    expect(next).not.toEqual(start);
  });
});

gpuTest("streams and events order work and measure time", () => {
  scope(() => {
    using stream = new cuda.Stream();
    using ready = new cuda.Event();
    using start = new cuda.Event();
    using end = new cuda.Event();
    const x = ops.ones([2048, 2048], { device });
    ready.record();
    const y = stream.run(() => {
      stream.wait(ready);
      start.record();
      let product = ops.matmul(x, x);
      for (let i = 0; i < 10; i++) product = ops.mul(ops.matmul(product, x), 1 / 2048);
      end.record();
      return product;
    });
    expect(start.elapsedMs(end)).toBeGreaterThan(0);
    expect(end.query()).toBe(true);
    cuda.waitEvent(end);
    stream.synchronize();
    expect(ops.amax(y).item()).toBe(2048);
  });
});

describe("graphs", () => {
  gpuTest("a replay recomputes from the inputs' new values, as eager does", () => {
    scope(() => {
      using generator = new Generator(1, device);
      const w = ops.randn([64, 64], { device, generator });
      const input = ops.zeros([8, 64], { device });
      const forward = () => ops.softmax(ops.matmul(ops.silu(ops.matmul(input, w)), w), -1);
      forward(); // loads kernels and workspaces
      using graph = new cuda.CudaGraph();
      const output = graph.capture(forward);
      for (let i = 0; i < 3; i++) {
        ops.copy_(input, ops.randn([8, 64], { device, generator }));
        graph.replay();
        expect(output.toArray()).toEqual(forward().toArray());
      }
    });
  });

  gpuTest("graphs share a pool", () => {
    scope(() => {
      const x = ops.ones([1024], { device });
      using first = new cuda.CudaGraph();
      using second = new cuda.CudaGraph();
      const y = first.capture(() => ops.mul(ops.add(x, 1), 3));
      const z = second.capture(() => ops.mul(y, 2), { poolOf: first });
      ops.fill_(x, 2);
      first.replay();
      second.replay();
      expect(ops.amax(z).item()).toBe(18);
    });
  });

  gpuTest("waiting inside a capture is an error, after which the engine still works", () => {
    scope(() => {
      const x = ops.ones([4], { device });
      const graph = new cuda.CudaGraph();
      expect(() => graph.capture(() => ops.add(x, 1).item())).toThrow();
      graph[Symbol.dispose]();
      expect(ops.add(x, 1).toNumbers()).toEqual([2, 2, 2, 2]);
      using next = new cuda.CudaGraph();
      const y = next.capture(() => ops.add(x, 5));
      next.replay();
      expect(y.toNumbers()).toEqual([6, 6, 6, 6]);
    });
  });
});

gpuTest("memory statistics follow allocations; an impossible one is an error", () => {
  scope(() => {
    cuda.synchronize();
    cuda.resetPeakMemory();
    const before = cuda.memoryStats();
    const bytes = 64 << 20;
    const x = ops.empty([bytes], { dtype: "uint8", device });
    expect(cuda.memoryStats().allocated - before.allocated).toBe(bytes);
    x.free();
    const after = cuda.memoryStats();
    expect(after.allocated).toBe(before.allocated);
    expect(after.peak).toBeGreaterThanOrEqual(before.allocated + bytes);
    expect(after.total).toBeGreaterThan(after.free);
    expect(() => ops.empty([2 ** 44], { dtype: "uint8", device })).toThrow(NativeError);
    cuda.emptyCache();
    expect(cuda.memoryStats().reserved).toBeLessThanOrEqual(after.reserved);
  });
});
