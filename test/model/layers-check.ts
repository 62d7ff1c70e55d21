/** Fused parts of a layer against the ATen operators that they stand for, output and gradients; shared by the CPU and the CUDA test. */

import { expect } from "vitest";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import {
  add,
  addmm,
  cast,
  cos,
  detach,
  mul,
  randn,
  rmsNorm,
  sigmoid,
  silu,
  sin,
  split,
  transpose,
} from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Device, DType, Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

const groveRmsNorm = op("grove::rms_norm");
const swigluDown = op("grove::swiglu_down");
const quickGelu = op("grove::quick_gelu");
const rotate = op("grove::rotate");
const roll = op("aten::roll");

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

/** Cosines and sines [T, 1, D] of some angles, rounded to `values`, in `dtype`. */
function rotationTable(T: number, D: number, device: Device, values: DType, dtype: DType): [Tensor, Tensor] {
  using generator = new Generator(5, device);
  const angles = randn([T, 1, D], { device, generator });
  const rounded = (x: Tensor) => cast(cast(x, values), dtype);
  return [rounded(cos(angles)), rounded(sin(angles))];
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
    ...[33, 40].map((I) => ({
      name: `swiglu_down, I = ${I}`, // 40 fills vectors of eight, which CUDA in bfloat16 has a kernel for
      shapes: [
        [37, 24],
        [37, 2 * I],
        [24, I],
      ],
      ours: ([h, gateUp, down]: Tensor[]) => swigluDown(h, gateUp, down),
      plain: ([h, gateUp, down]: Tensor[]) => {
        const [gate, up] = split(gateUp as Tensor, [I, I], 1) as [Tensor, Tensor];
        return addmm(h as Tensor, mul(silu(gate), up), transpose(down as Tensor, 0, 1));
      },
    })),
    ...[45, 48].map((columns) => ({
      name: `quick_gelu, ${columns} columns`,
      shapes: [[37, columns]],
      ours: ([x]: Tensor[]) => quickGelu(x),
      plain: ([x]: Tensor[]) => mul(x as Tensor, sigmoid(mul(x as Tensor, 1.702))),
    })),
    ...[20, 80].flatMap((D) =>
      (dtype === "float64" ? ["own"] : ["own", "float32"]).map((table) => ({
        name: `rotate, heads of ${D}, table in ${table === "own" ? "its own type" : table}`,
        shapes: [[37, 7, D]],
        // The first five of seven heads, as q and k are cut from a row that holds v too.
        ours: ([x]: Tensor[]) => {
          const [c, s] = rotationTable(
            37,
            D,
            device,
            table === "own" ? dtype : "float32",
            table === "own" ? dtype : "float32",
          );
          return rotate(split(x as Tensor, [5, 2], 1)[0], c, s);
        },
        plain: ([x]: Tensor[]) => {
          const [c, s] = rotationTable(37, D, device, table === "own" ? dtype : "float32", "float64");
          const heads = split(x as Tensor, [5, 2], 1)[0] as Tensor;
          return add(mul(heads, c), mul(roll(heads, [D / 2], [2]), s));
        },
      })),
    ),
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
