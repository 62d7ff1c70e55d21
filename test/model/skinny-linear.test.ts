import { expect, test } from "vitest";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import { setNumThreads } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import {
  addmm,
  contiguous,
  detach,
  expand,
  mul,
  randn,
  silu,
  slice,
  split,
  linear as stock,
  transpose,
} from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const linearResidualHalves = op("grove::linear_residual_halves");
const linearSwiglu = op("grove::linear_swiglu");

/** Output and gradients of all inputs. */
function results(shapes: number[][], run: (inputs: Tensor[]) => Tensor): number[][] {
  return scope(() => {
    using generator = new Generator(1);
    const leaves = shapes.map((shape) => detach(randn(shape, { dtype: "float64", generator })).setRequiresGrad(true));
    const out = enableGrad(() => run(leaves));
    backward([out], [randn(out.shape, { dtype: "float64", generator })]);
    return [out, ...leaves.map((leaf) => leaf.grad as Tensor)].map((x) => x.toNumbers());
  });
}

test.each([
  [
    "linear",
    [[5, 7], [6, 7], [6]],
    ([x, w, b]: Tensor[]) => linear(x, w, b),
    ([x, w, b]: Tensor[]) => stock(x!, w!, b),
  ],
  [
    "linear without bias",
    [
      [5, 7],
      [6, 7],
    ],
    ([x, w]: Tensor[]) => linear(x, w, null),
    ([x, w]: Tensor[]) => stock(x!, w!),
  ],
  [
    "linear_residual",
    [
      [5, 7],
      [6, 7],
      [5, 6],
    ],
    ([x, w, r]: Tensor[]) => linearResidual(x, w, r),
    ([x, w, r]: Tensor[]) => addmm(r!, x!, transpose(w!, 0, 1)),
  ],
  [
    "linear_swiglu",
    [
      [5, 7],
      [6, 7],
    ],
    ([x, w]: Tensor[]) => linearSwiglu(x, w),
    ([x, w]: Tensor[]) => {
      const [gate, up] = split(stock(x!, w!), [3, 3], 1) as [Tensor, Tensor];
      return mul(silu(gate), up);
    },
  ],
] as const)("%s is the operators it stands for, gradients too", (_name, shapes, ours, plain) => {
  const mutable = shapes.map((shape) => [...shape]);
  expect(results(mutable, ours)).toEqual(results(mutable, plain));
});

test("a row's SwiGLU does not depend on where threads cut the batch", () => {
  setNumThreads(3); // of 8 x 8,960 values a thread gets two rows and two thirds of one
  try {
    scope(() => {
      using generator = new Generator(1);
      const x = contiguous(expand(randn([1, 16], { generator }), [8, 16]));
      const out = linearSwiglu(x, randn([2 * 8960, 16], { generator }));
      const first = slice(out, 0, 0, 1).toNumbers();
      for (let row = 1; row < 8; row++) expect(slice(out, 0, row, row + 1).toNumbers(), `row ${row}`).toEqual(first);
    });
  } finally {
    setNumThreads(1);
  }
});

test.each([
  ["linear: expected x", () => linear(randn([2, 3]), randn([4, 5]), null)],
  ["expected bias [4]", () => linear(randn([2, 3]), randn([4, 3]), randn([5]))],
  ["expected residual [2, 4]", () => linearResidual(randn([2, 3]), randn([4, 3]), randn([2, 5]))],
  ["expected residual [2, 4]", () => linearResidualHalves(randn([2, 3]), randn([4, 3]), randn([2, 5]))],
  ["even number of rows", () => linearSwiglu(randn([2, 3]), randn([5, 3]))],
])("misshapen factors are refused: %s", (message, run) => {
  expect(() => scope(run)).toThrow(message);
});

test("a sum in halves is the sum, on the CPU in order and without a gradient", () => {
  scope(() => {
    using generator = new Generator(1);
    const [x, w, r] = [
      [5, 8448],
      [6, 8448],
      [5, 6],
    ].map((shape) => randn(shape, { dtype: "float64", generator }).setRequiresGrad(true)) as [Tensor, Tensor, Tensor];
    const out = enableGrad(() => linearResidualHalves(x, w, r));
    expect(out.requiresGrad).toBe(false);
    expect(out.toNumbers()).toEqual(linearResidual(x, w, r).toNumbers());
  });
});
