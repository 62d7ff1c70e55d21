/** Products of few rows, and what follows them: the bits of the same operators with many rows, which is how training computes them. */

import { expect } from "vitest";
import { noGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import {
  addmm,
  cast,
  contiguous,
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
import { gpuTest } from "../setup/gpu.ts";
import { relativeError } from "./support.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const linearResidualHalves = op("grove::linear_residual_halves");
const linearSwiglu = op("grove::linear_swiglu");
const ROWS = [1, 8, 37, 64, 65, 128];

interface Case {
  x: Tensor; // [1024, K]
  weight: Tensor; // [N, K]
  residual: Tensor; // [1024, N]
  bias: Tensor; // [N]
}

const OPERATORS: Record<string, { few: (c: Case) => Tensor; many: (c: Case) => Tensor }> = {
  plain: { few: (c) => linear(c.x, c.weight, null), many: (c) => stock(c.x, c.weight) },
  bias: { few: (c) => linear(c.x, c.weight, c.bias), many: (c) => stock(c.x, c.weight, c.bias) },
  residual: {
    few: (c) => linearResidual(c.x, c.weight, c.residual),
    many: (c) => addmm(c.residual, c.x, transpose(c.weight, 0, 1)),
  },
  halves: {
    few: (c) => linearResidualHalves(c.x, c.weight, c.residual),
    many: (c) => linearResidualHalves(c.x, c.weight, c.residual),
  },
  swiglu: {
    few: (c) => linearSwiglu(c.x, c.weight),
    many: (c) => {
      const half = c.weight.size(0) / 2;
      const [gate, up] = split(stock(c.x, c.weight), [half, half], 1) as [Tensor, Tensor];
      return mul(silu(gate), up);
    },
  },
};

function draw(N: number, K: number): Case {
  using generator = new Generator(3, "cuda");
  const random = (size: number[], scale: number) =>
    cast(mul(randn(size, { device: "cuda", generator }), scale), "bfloat16");
  return {
    x: random([1024, K], 1),
    weight: random([N, K], 0.03),
    residual: random([1024, N], 1),
    bias: random([N], 1),
  };
}

const firstRows = (c: Case, rows: number): Case => ({
  ...c,
  x: contiguous(slice(c.x, 0, 0, rows)),
  residual: contiguous(slice(c.residual, 0, 0, rows)),
});

gpuTest.each([
  ["bias", 4608, 3584],
  ["bias", 2048, 1536],
  ["residual", 3584, 18944],
  ["residual", 3584, 3584],
  ["residual", 1536, 8960],
  ["residual", 1536, 1536],
  ["halves", 3584, 18944],
  ["halves", 1536, 8960],
  ["halves", 2048, 8192],
  ["halves", 8192, 8192],
  ["residual", 8192, 8192],
  ["residual", 8192, 14720],
  ["swiglu", 2 * 18944, 3584],
  ["swiglu", 2 * 8960, 1536],
  ["plain", 152064, 3584],
  ["plain", 1280, 1280],
] as const)("%s, [T, K] x [%i, %i]: few rows have the bits of many", (name, N, K) => {
  scope(() =>
    noGrad(() => {
      const all = draw(N, K);
      const { few, many } = OPERATORS[name]!;
      const expected = many(all);
      for (const rows of N > 100_000 ? [64, 100] : ROWS) {
        const got = few(firstRows(all, rows)).toNumbers();
        const wanted = slice(expected, 0, 0, rows).toNumbers();
        expect(got.filter((value, i) => value !== wanted[i]).length, `${rows} rows`).toBe(0);
      }
    }),
  );
});

gpuTest("rows and columns that fill no tile, and factors that the kernel leaves to cuBLAS", () => {
  for (const [N, K] of [
    [104, 256],
    [8, 128],
    [66, 384],
    [48, 100],
    [104, 8448],
  ] as const) {
    scope(() =>
      noGrad(() => {
        const all = draw(N, K);
        const wide = Object.fromEntries(
          Object.entries(all).map(([key, x]) => [key, cast(x, "float64")]),
        ) as unknown as Case;
        for (const [name, { few, many }] of Object.entries(OPERATORS)) {
          const exact = many(wide);
          for (const rows of ROWS) {
            const got = few(firstRows(all, rows)).toNumbers();
            expect(relativeError(got, slice(exact, 0, 0, rows).toNumbers()), `${name}, ${rows} rows`).toBeLessThan(
              7e-3,
            );
          }
        }
      }),
    );
  }
});

gpuTest("SwiGLU of gates so large that the short division does not do", () => {
  scope(() =>
    noGrad(() => {
      const drawn = draw(2 * 144, 512);
      const all = { ...drawn, x: mul(drawn.x, 64) }; // gates of about 43
      const { few, many } = OPERATORS.swiglu!;
      const expected = many(all);
      for (const rows of ROWS)
        expect(few(firstRows(all, rows)).toNumbers()).toEqual(slice(expected, 0, 0, rows).toNumbers());
    }),
  );
});

gpuTest("more rows than the kernel takes: the product by cuBLAS, SwiGLU as two operators round it", () => {
  scope(() =>
    noGrad(() => {
      const some = firstRows(draw(2 * 176, 256), 300);
      const { few, many } = OPERATORS.swiglu!;
      expect(few(some).toNumbers()).toEqual(many(some).toNumbers());
    }),
  );
});
