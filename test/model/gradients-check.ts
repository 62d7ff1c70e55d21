/** Gradients added in place against autograd's own, over float64; shared by the CPU and the CUDA test. */

import { expect } from "vitest";
import { backward, enableGrad, grad } from "../../src/torch/autograd.ts";
import { op, opN } from "../../src/torch/dispatch.ts";
import {
  addmm,
  cast,
  cat,
  clone,
  cos,
  detach,
  indexSelect,
  layerNorm,
  linear as plainLinear,
  randn,
  reshape,
  rmsNorm,
  sin,
  split,
  transpose,
} from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const normLinear = opN("grove::norm_linear");
const embedding = op("grove::embedding");
const rotate = op("grove::rotate");
const rotateCut = opN("grove::rotate_cut");

type Run = (inputs: Tensor[]) => Tensor;
const ids = [3, 11, 3, 0, 7, 3, 11, 19, 19, 5]; // rows that repeat, and two that nobody may touch
const replaced = [19, 5];

/** The branch beside its residual. */
const forked = (x: Tensor, ...rest: (Tensor | null | number | boolean)[]) => {
  const [product, fork] = normLinear(x, ...(rest as [])) as [Tensor, Tensor];
  return cat([product, fork], 1);
};

function cases(T: number, N: number): { name: string; shapes: number[][]; ours: Run; plain: Run }[] {
  const square = (name: string, keep: boolean) => [
    {
      name: `norm_linear over an RMS norm, ${name}, ${T} x ${N}`,
      shapes: [[T, N], [N], [24, N], [24]],
      ours: ([x, w, weight, bias]: Tensor[]) => forked(x!, w!, null, 1e-6, weight!, bias!, keep),
      plain: ([x, w, weight, bias]: Tensor[]) => cat([plainLinear(rmsNorm(x!, w!, 1e-6), weight!, bias!), x!], 1),
    },
    {
      name: `norm_linear over a layer norm, ${name}, ${T} x ${N}`,
      shapes: [[T, N], [N], [N], [24, N], [24]],
      ours: ([x, w, b, weight, bias]: Tensor[]) => forked(x!, w!, b!, 1e-6, weight!, bias!, keep),
      plain: ([x, w, b, weight, bias]: Tensor[]) =>
        cat([plainLinear(layerNorm(x!, [N], w!, b!, 1e-6), weight!, bias!), x!], 1),
    },
  ];
  return [
    {
      name: `linear with bias, ${T} x ${N}`,
      shapes: [[T, 24], [N, 24], [N]],
      ours: ([x, w, b]) => linear(x!, w!, b!),
      plain: ([x, w, b]) => plainLinear(x!, w!, b!),
    },
    {
      name: `linear_residual, ${T} x ${N}`,
      shapes: [
        [T, 24],
        [N, 24],
        [T, N],
      ],
      ours: ([x, w, residual]) => linearResidual(x!, w!, residual!),
      plain: ([x, w, residual]) => addmm(residual!, x!, transpose(w!, 0, 1)),
    },
    {
      name: `a weight used twice, ${T} x ${N}`,
      shapes: [
        [T, 24],
        [24, 24],
      ],
      ours: ([x, w]) => linear(linear(x!, w!, null), w!, null),
      plain: ([x, w]) => plainLinear(plainLinear(x!, w!), w!),
    },
    ...square("kept", true),
    ...square("again", false),
    {
      name: `embedding, ${N}`,
      shapes: [[20, N]],
      ours: ([w]) => embedding(w!, rows(w!), replaced),
      plain: ([w]) => indexSelect(w!, 0, rows(w!)),
    },
  ];
}

const rows = (w: Tensor) => fromArray(Int32Array.from(ids), [ids.length], { dtype: "int64", device: w.device });

const projectedAttention = op("grove::projected_attention");
const groupAttention = op("grove::group_attention");

/** Two prompts of 19 and 8 tokens with completions of 5, 6 and of 7, whose attention takes qkv [45, 4 + 2 + 2, D]. */
function attentionLayout(device: Device, D: number): (Tensor | number)[] {
  const int = (...values: number[]) => fromArray(Int32Array.from(values), [values.length], { dtype: "int32", device });
  const row = (x: Tensor) => reshape(x, [1, x.size(0)]);
  const offsets = [int(0, 19, 27), int(0, 11, 18), int(0, 5, 11, 18)];
  return [...offsets, row(int(0, 19, 27)), row(int(19, 8)), 27, 19, 11, 7, 19, D ** -0.5];
}

/** qkv and q, k, v of the same by the operators, the rotation's table in float32. */
export function attentionCases(
  device: Device,
  dtype: DType,
  D: number,
): { name: string; shapes: number[][]; ours: Run; plain: Run }[] {
  using generator = new Generator(8, device);
  const angles = randn([45, 1, D], { device, generator });
  const [c, s] = [cast(cos(angles), dtype), cast(sin(angles), dtype)];
  const pieces = (qkv: Tensor) => {
    const [unrotated, v] = split(qkv, [6, 2], 1) as [Tensor, Tensor];
    const [q, k] = split(rotate(unrotated, c, s), [4, 2], 1) as [Tensor, Tensor];
    return [q, k, v] as const;
  };
  return [true, false].flatMap((own) => [
    {
      name: `projected_attention, head size ${D}, own values ${own}`,
      shapes: [[45, 8, D]],
      ours: ([qkv]: Tensor[]) => projectedAttention(qkv!, c, s, 2, own, ...attentionLayout(device, D)),
      plain: ([qkv]: Tensor[]) => groupAttention(...pieces(qkv!), ...attentionLayout(device, D)),
    },
    {
      name: `rotate_cut, head size ${D}, own values ${own}`,
      shapes: [[45, 8, D]],
      ours: ([qkv]: Tensor[]) => cat(rotateCut(qkv!, c, s, 2, own), 1),
      plain: ([qkv]: Tensor[]) => cat([...pieces(qkv!)], 1),
    },
  ]);
}

/** Output, then what `.grad` of every input holds after a backward that found random values there; `given`: without those, and from grad(). */
function results(
  shapes: number[][],
  device: Device,
  values: DType,
  dtype: DType,
  run: Run,
  given: boolean,
): number[][] {
  return scope(() => {
    using generator = new Generator(4, device);
    const draw = (shape: number[]) => cast(cast(randn(shape, { device, generator }), values), dtype);
    const leaves = shapes.map((shape) => detach(draw(shape)).setRequiresGrad(true));
    const before = leaves.map((leaf) => draw(leaf.shape));
    if (!given) for (const [i, leaf] of leaves.entries()) leaf.setGrad(clone(before[i]!));
    const out = enableGrad(() => run(leaves));
    const dOut = draw(out.shape);
    // rows that are replaced have no gradient
    if (shapes[0]![0] === 20) for (const [i, id] of ids.entries()) if (replaced.includes(id)) zeroRow(dOut, i);
    if (!given) backward([out], [dOut]);
    const found = given ? grad([out], leaves, [dOut]) : leaves.map((leaf) => leaf.grad);
    return [out, ...found].map((x) => (x as Tensor).toNumbers());
  });
}

const fill = op("aten::index_fill_.int_Scalar");
function zeroRow(x: Tensor, row: number): void {
  fill(x, 0, fromArray(Int32Array.of(row), [1], { dtype: "int64", device: x.device }), 0);
}

export function checkGradients(device: Device, dtype: DType, tolerance: number): void {
  for (const [T, N] of [
    [37, 40],
    [300, 2568], // whole vectors of eight, which CUDA has kernels for, and not:
    [5, 33],
  ] as const) {
    for (const { name, shapes, ours, plain } of cases(T, N)) {
      for (const given of [false, true]) {
        const got = results(shapes, device, dtype, dtype, ours, given);
        const exact = results(shapes, device, dtype, "float64", plain, given);
        got.forEach((numbers, i) => {
          const what = `${name} ${dtype} ${given ? "grad()" : "added"} ${i === 0 ? "output" : `gradient ${i}`}`;
          expect(relativeError(numbers, exact[i] as number[]), what).toBeLessThan(tolerance);
        });
      }
    }
  }
}

/** Against the operators in the same type: they round more often. */
export function checkAttentionGradients(device: Device, dtype: DType, tolerance: number): void {
  scope(() => {
    // of 128 there is a kernel of our own, see native/group_attention_backward.h
    for (const { name, shapes, ours, plain } of [32, 128].flatMap((D) => attentionCases(device, dtype, D))) {
      const got = results(shapes, device, dtype, dtype, ours, false);
      const expected = results(shapes, device, dtype, dtype, plain, false);
      expect(got[0], name).toEqual(expected[0]);
      expect(relativeError(got[1] as number[], expected[1] as number[]), name).toBeLessThan(tolerance);
    }
  });
}
