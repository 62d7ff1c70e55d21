/** grove::linear_residual with few rows: the bits of the same product with many rows, which is how training computes it. */

import { expect } from "vitest";
import { noGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import { addmm, cast, contiguous, mul, randn, slice, transpose } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { gpuTest } from "../setup/gpu.ts";
import { relativeError } from "./support.ts";

const linearResidual = op("grove::linear_residual");
const ROWS = [1, 8, 37, 64, 65, 128];

function products(N: number, K: number) {
  using generator = new Generator(3, "cuda");
  const draw = (size: number[], scale: number) =>
    cast(mul(randn(size, { device: "cuda", generator }), scale), "bfloat16");
  const [x, weight, residual] = [draw([1024, K], 1), draw([N, K], 0.03), draw([1024, N], 1)];
  return { x, weight, residual, many: noGrad(() => addmm(residual, x, transpose(weight, 0, 1))) };
}

gpuTest.each([
  [3584, 18944],
  [3584, 3584],
  [1536, 8960],
  [1536, 1536],
  [8192, 8192],
])("[T, K] x [%i, %i]: few rows have the bits of many", (N, K) => {
  scope(() => {
    const { x, weight, residual, many } = products(N, K);
    for (const rows of ROWS) {
      const few = noGrad(() =>
        linearResidual(contiguous(slice(x, 0, 0, rows)), weight, contiguous(slice(residual, 0, 0, rows))),
      );
      const expected = slice(many, 0, 0, rows).toNumbers();
      const differing = few.toNumbers().filter((value, i) => value !== expected[i]).length;
      expect(differing, `${rows} rows`).toBe(0);
    }
  });
});

gpuTest("rows and columns that fill no tile, and a K that the kernel leaves to cuBLAS", () => {
  for (const [N, K] of [
    [100, 256],
    [7, 128],
    [65, 384],
    [48, 100],
  ] as const) {
    scope(() => {
      const { x, weight, residual } = products(N, K);
      const exact = addmm(cast(residual, "float64"), cast(x, "float64"), transpose(cast(weight, "float64"), 0, 1));
      for (const rows of ROWS) {
        const few = noGrad(() =>
          linearResidual(contiguous(slice(x, 0, 0, rows)), weight, contiguous(slice(residual, 0, 0, rows))),
        );
        expect(relativeError(few.toNumbers(), slice(exact, 0, 0, rows).toNumbers())).toBeLessThan(5e-3);
      }
    });
  }
});
