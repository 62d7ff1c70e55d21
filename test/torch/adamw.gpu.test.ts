/** The AdamW kernel against the CPU, bit for bit: every kind of weights and moments, odd sizes, weights that are not aligned, ranges, the guard. */
import { expect } from "vitest";
import { versions } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Device } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";
import { COUNTS, gradients, KINDS, type Kind, makeState, masters, step, stored } from "./adamw-check.ts";

gpuTest("the kernel library is loaded where one was built", () => {
  if (!versions().kernels) process.stderr.write("AdamW runs as a composition: no nvcc, so no libgrove_kernels.so\n");
  expect(versions().cudaBuild).toBe(true);
});

/** Weights and state after a few steps, one of them in ranges and one with a norm that is not finite. */
function run(name: string, device: Device, kind: Kind, shift: number): unknown[] {
  return scope(() => {
    const state = makeState(kind, device, COUNTS, shift);
    for (let t = 1; t <= 6; t++) {
      scope(() => {
        const grad = gradients(state, t, kind.weights, device);
        const norm = t === 4 ? Number.NaN : 3;
        if (t !== 5) return step(name, state, grad, t, { norm, maxNorm: 1 });
        for (const [begin, end] of [
          [0, 1536],
          [1536, 40_192],
          [40_192, state.size],
        ] as const)
          step(name, state, grad, t, { norm, maxNorm: 1, begin, end });
      });
    }
    return [masters(state), stored(state)];
  });
}

gpuTest.each(KINDS)("$weights weights, $moments moments", (kind) => {
  for (const shift of [0, 1, 3])
    expect(run("grove::adamw_", "cuda", kind, shift)).toEqual(run("grove::adamw_", "cpu", kind, shift));
});

gpuTest.each(KINDS)("the composition on the device: $weights weights, $moments moments", (kind) => {
  const [weights] = run("grove::adamw_composed_", "cuda", kind, 0) as [Float32Array];
  const [expected] = run("grove::adamw_", "cpu", kind, 0) as [Float32Array];
  let worst = 0;
  weights.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(value - expected[i]!));
  });
  expect(worst).toBeLessThan(kind.moments === "float32" ? 2e-5 : 2e-2); // libtorch may round otherwise; a flipped code moves a step by a few per cent
});

gpuTest.each(["float32", "bfloat16"] as const)("the norm of %s gradients", (dtype) => {
  for (const count of [0, 1, 7, 65_536, 65_537, 1_000_003]) {
    scope(() => {
      const state = makeState({ weights: "float32", moments: "float32" }, "cpu", [Math.max(1, count)]);
      const grad = ops.slice(gradients(state, 4, dtype, "cpu"), 0, 0, count);
      const onGpu = op("grove::grad_norm")(ops.to(ops.clone(grad), { device: "cuda" })).item();
      const expected = op("grove::grad_norm")(ops.clone(grad)).item();
      expect(Math.abs(onGpu - expected)).toBeLessThanOrEqual(1e-6 * expected);
    });
  }
  scope(() => {
    const grad = ops.ones([70_000], { device: "cuda", dtype });
    ops.copy_(ops.slice(grad, 0, 69_999, 70_000), ops.full([1], Number.NaN, { dtype }));
    expect(op("grove::grad_norm")(grad).item()).toBeNaN();
  });
});
