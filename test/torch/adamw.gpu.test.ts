/** The AdamW kernel against the composition of ATen ops and against the CPU, odd sizes and unaligned buckets included. */
import { expect } from "vitest";
import { versions } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";

const STEPS = 10;

/** Runs STEPS steps; returns param, m and v as numbers. `offset` shifts every bucket by that many elements. */
function run(
  name: string,
  device: "cpu" | "cuda",
  n: number,
  { split, gradDtype, offset }: { split: boolean; gradDtype: DType; offset: number },
): number[][] {
  return scope(() => {
    const step = op(name);
    using generator = new Generator(6);
    const bucket = (source: Tensor): Tensor => ops.slice(ops.to(source, { device }), 0, offset, offset + n);
    const random = (dtype: DType): Tensor => bucket(ops.cast(ops.randn([n + offset], { generator }), dtype));
    const param = random(split ? "bfloat16" : "float32");
    const low = split ? bucket(ops.zeros([n + offset], { dtype: "int16" })) : null;
    const [m, v] = [bucket(ops.zeros([n + offset])), bucket(ops.zeros([n + offset]))];
    const scale = fromArray([0.5], [1], { device });
    for (let t = 1; t <= STEPS; t++) step(param, random(gradDtype), low, m, v, scale, 1e-2, 0.9, 0.99, 1e-8, 0.1, t);
    if (low === null) return [param, m, v].map((tensor) => tensor.toNumbers());
    const high = ops.viewDtype(param, "int16").toArray() as Int16Array;
    const rest = low.toArray() as Int16Array;
    const master = new Float32Array(Int32Array.from(high, (bits, i) => (bits << 16) + rest[i]!).buffer);
    return [Array.from(master), m.toNumbers(), v.toNumbers()];
  });
}

gpuTest("the kernel library is loaded where one was built", () => {
  if (!versions().kernels) process.stderr.write("AdamW runs as a composition: no nvcc, so no libgrove_kernels.so\n");
  expect(versions().cudaBuild).toBe(true);
});

gpuTest.each([
  [1, false, "float32", 0],
  [4099, false, "float32", 0],
  [4099, false, "bfloat16", 1],
  [4096, true, "bfloat16", 0],
  [100_003, true, "bfloat16", 0],
  [1001, true, "float32", 3],
] as const)("%i elements, split %s, %s gradients, offset %i", (n, split, gradDtype, offset) => {
  const settings = { split, gradDtype, offset };
  const kernel = run("grove::adamw_", "cuda", n, settings);
  const composed = run("grove::adamw_composed_", "cuda", n, settings);
  const cpu = run("grove::adamw_", "cpu", n, settings);
  kernel.forEach((values, which) => {
    let worst = 0;
    values.forEach((value, i) => {
      worst = Math.max(worst, Math.abs(value - composed[which]![i]!), Math.abs(value - cpu[which]![i]!));
    });
    expect(worst).toBeLessThan(2e-5); // float32, fused multiply-adds in the kernel only
  });
});
