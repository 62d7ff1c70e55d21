/** grove::rms_norm and grove::swiglu_down against the ATen operators that they stand for; shared by the CPU and the CUDA test. */

import { expect } from "vitest";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import { addmm, cast, detach, mul, randn, rmsNorm, silu, split, transpose } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Device, DType, Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

const groveRmsNorm = op("grove::rms_norm");
const swigluDown = op("grove::swiglu_down");

/** Output and input gradients of `run`, in `dtype`, for the same random values. */
function results(
  shapes: number[][],
  dtype: DType,
  device: Device,
  values: DType,
  run: (inputs: Tensor[]) => Tensor,
): number[][] {
  return scope(() => {
    using generator = new Generator(2, device);
    const draw = (shape: number[]) => cast(cast(randn(shape, { device, generator }), values), dtype);
    const leaves = shapes.map((shape) => detach(draw(shape)).setRequiresGrad(true));
    const out = enableGrad(() => run(leaves));
    backward([out], [draw(out.shape)]);
    return [out, ...leaves.map((leaf) => leaf.grad as Tensor)].map((x) => x.toNumbers());
  });
}

export function checkLayers(device: Device, dtype: DType, tolerance: number): void {
  const cases: { name: string; shapes: number[][]; ours: (x: Tensor[]) => Tensor; plain: (x: Tensor[]) => Tensor }[] = [
    {
      name: "rms_norm",
      shapes: [[37, 45], [45]], // rows and columns that fill no block and no lane evenly
      ours: ([x, w]) => groveRmsNorm(x, w, 1e-6),
      plain: ([x, w]) => rmsNorm(x as Tensor, w as Tensor, 1e-6),
    },
    {
      name: "rms_norm of whole vectors", // which CUDA in bfloat16 has a kernel for
      shapes: [[37, 2072], [2072]],
      ours: ([x, w]) => groveRmsNorm(x, w, 1e-6),
      plain: ([x, w]) => rmsNorm(x as Tensor, w as Tensor, 1e-6),
    },
    {
      name: "swiglu_down",
      shapes: [
        [37, 20],
        [37, 66],
        [20, 33],
      ],
      ours: ([h, gateUp, down]) => swigluDown(h, gateUp, down),
      plain: ([h, gateUp, down]) => {
        const [gate, up] = split(gateUp as Tensor, [33, 33], 1) as [Tensor, Tensor];
        return addmm(h as Tensor, mul(silu(gate), up), transpose(down as Tensor, 0, 1));
      },
    },
  ];
  for (const { name, shapes, ours, plain } of cases) {
    const got = results(shapes, dtype, device, dtype, ours);
    const exact = results(shapes, "float64", device, dtype, plain);
    got.forEach((numbers, i) => {
      expect(
        relativeError(numbers, exact[i] as number[]),
        `${name} ${dtype} ${i === 0 ? "output" : `gradient ${i}`}`,
      ).toBeLessThan(tolerance);
    });
  }
}
