/** The products of adapters on a GPU: a row's bits whatever the number of rows, which is how a decode step and a training pass agree. */

import { expect } from "vitest";
import { backward, enableGrad, noGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import { all, cast, clone, detach, div, eq, mul, norm, randn, slice, sub, to, zerosLike } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";
import { relativeError } from "./support.ts";

const loraAdd_ = op("grove::lora_add_");

/** [columns of y, of x, rank, spans]: down, q k v and gate up of 7B, a vision block's, and sizes that the kernels do not take or take in part. */
const CASES: [N: number, K: number, rank: number, spans: number[]][] = [
  [3584, 18944, 16, [0, 3584]],
  [4608, 3584, 16, [0, 3584, 3584, 4096, 4096, 4608]],
  [4608, 3584, 64, [0, 3584, 4096, 4608]],
  [37888, 3584, 8, [0, 18944, 18944, 37888]],
  [3840, 1280, 4, [0, 3840]],
  [40, 64, 2, [8, 32]],
  [40, 32, 3, [0, 8, 16, 40]],
  [36, 24, 5, [0, 12, 12, 36]],
];

interface Case {
  y: Tensor; // [1024, N]
  x: Tensor; // [1024, K]
  a: Tensor;
  b: Tensor;
}

function draw(N: number, K: number, rank: number, spans: readonly number[]): Case {
  using generator = new Generator(5, "cuda");
  const random = (size: number[], scale: number) =>
    cast(mul(randn(size, { device: "cuda", generator }), scale), "bfloat16");
  const rows = spans.reduce((sum, at, i) => sum + (i % 2 === 0 ? -at : at), 0);
  return {
    y: random([1024, N], 1),
    x: random([1024, K], 1),
    a: random([(spans.length / 2) * rank, K], K ** -0.5),
    b: random([rows, rank], 0.5),
  };
}

const outputs = ({ y, x, a, b }: Case, spans: readonly number[], rows: number) => {
  const out = clone(slice(y, 0, 0, rows));
  loraAdd_(out, clone(slice(x, 0, 0, rows)), a, b, spans, 2);
  return out;
};

for (const [N, K, rank, spans] of CASES) {
  gpuTest(
    `an adapter of rank ${rank} beside [${N}, ${K}]: float32's values and, by kernels, one row's bits in any company`,
    () => {
      scope(() =>
        noGrad(() => {
          const one = draw(N, K, rank, spans);
          const many = outputs(one, spans, 1024);
          const wide = (tensor: Tensor) => cast(tensor, "float32");
          const exact = wide(one.y);
          loraAdd_(exact, wide(one.x), wide(one.a), wide(one.b), spans, 2);
          const error = div(norm(sub(wide(many), exact)), norm(exact)).item();
          expect(error).toBeLessThan(5e-3);
          if (K % 32 !== 0 || rank % 2 !== 0 || N % 8 !== 0) return; // ATen's
          for (const rows of [1, 8, 37, 64, 128, 300]) {
            const few = outputs(one, spans, rows);
            expect(all(eq(few, slice(many, 0, 0, rows))).item(), `${rows} rows`).toBe(1);
          }
        }),
      );
    },
  );
}

gpuTest("its gradients are those of the CPU in float32", () => {
  const spans = [0, 64, 128, 192];
  scope(() => {
    const one = draw(192, 96, 4, spans);
    const gradients = (place: (tensor: Tensor) => Tensor) => {
      const leaves = [one.x, one.a, one.b].map((tensor) => detach(place(tensor)).setRequiresGrad(true));
      const [x, a, b] = leaves as [Tensor, Tensor, Tensor];
      for (const leaf of leaves) leaf.setGrad(zerosLike(leaf));
      const out = enableGrad(() => loraAdd_(clone(place(one.y)), x, a, b, spans, 2));
      backward([out], [place(one.y)]);
      return leaves.map((leaf) => leaf.grad?.toNumbers() as number[]);
    };
    const found = gradients((tensor) => clone(tensor));
    const exact = gradients((tensor) => to(tensor, { device: "cpu", dtype: "float32" }));
    for (const [i, values] of found.entries()) expect(relativeError(values, exact[i] as number[])).toBeLessThan(2e-2);
  });
});
