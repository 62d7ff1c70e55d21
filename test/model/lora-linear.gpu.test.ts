/** Products with an adapter in one operator on a GPU: the bits of the product and the adapter one after the other, with few rows and with many. */

import { expect } from "vitest";
import { backward, enableGrad, noGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import { all, cast, clone, contiguous, detach, eq, mul, randn, slice, to, zerosLike } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";
import { relativeError } from "./support.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const linearResidualHalves = op("grove::linear_residual_halves");
const swiglu = op("grove::swiglu");
const loraAdd_ = op("grove::lora_add_");
const loraLinear = op("grove::lora_linear");
const loraSwigluDown = op("grove::lora_swiglu_down");
const loraLinearResidualHalves = op("grove::lora_linear_residual_halves");
const loraLinearSwiglu = op("grove::lora_linear_swiglu");

interface Case {
  x: Tensor; // [T, K]
  weight: Tensor; // [N, K]
  residual: Tensor; // [T, N]
  bias: Tensor; // [N]
  lora: readonly [a: Tensor, b: Tensor, spans: readonly number[], scale: number];
}

const OPERATORS: Record<string, { one: (c: Case) => Tensor; two: (c: Case) => Tensor }> = {
  plain: {
    one: ({ x, weight, lora }) => loraLinear(x, weight, null, null, ...lora),
    two: ({ x, weight, lora }) => loraAdd_(linear(x, weight, null), x, ...lora),
  },
  bias: {
    one: ({ x, weight, bias, lora }) => loraLinear(x, weight, bias, null, ...lora),
    two: ({ x, weight, bias, lora }) => loraAdd_(linear(x, weight, bias), x, ...lora),
  },
  residual: {
    one: ({ x, weight, residual, lora }) => loraLinear(x, weight, null, residual, ...lora),
    two: ({ x, weight, residual, lora }) => loraAdd_(linearResidual(x, weight, residual), x, ...lora),
  },
  halves: {
    one: ({ x, weight, residual, lora }) => loraLinearResidualHalves(x, weight, residual, ...lora),
    two: ({ x, weight, residual, lora }) => loraAdd_(linearResidualHalves(x, weight, residual), x, ...lora),
  },
  swiglu: {
    one: ({ x, weight, lora }) => loraLinearSwiglu(x, weight, ...lora),
    two: ({ x, weight, lora }) => swiglu(loraAdd_(linear(x, weight, null), x, ...lora)),
  },
};

function draw(N: number, K: number, rank: number, spans: readonly number[]): Case {
  using generator = new Generator(7, "cuda");
  const random = (size: number[], scale: number) =>
    cast(mul(randn(size, { device: "cuda", generator }), scale), "bfloat16");
  const rows = spans.reduce((sum, at, i) => sum + (i % 2 === 0 ? -at : at), 0);
  return {
    x: random([1024, K], 1),
    weight: random([N, K], 0.03),
    residual: random([1024, N], 1),
    bias: random([N], 1),
    lora: [random([(spans.length / 2) * rank, K], K ** -0.5), random([rows, rank], 0.5), spans, 2],
  };
}

const firstRows = (c: Case, rows: number): Case => ({
  ...c,
  x: contiguous(slice(c.x, 0, 0, rows)),
  residual: contiguous(slice(c.residual, 0, 0, rows)),
});

gpuTest.each([
  ["bias", 4608, 3584, 16, [0, 3584, 3584, 4096, 4096, 4608]],
  ["bias", 4608, 3584, 64, [0, 3584, 4096, 4608]],
  ["bias", 2048, 1536, 8, [1536, 1792]],
  ["residual", 3584, 3584, 16, [0, 3584]],
  ["residual", 1536, 1536, 40, [0, 1536]],
  ["halves", 3584, 18944, 16, [0, 3584]],
  ["halves", 1536, 8960, 2, [0, 1536]],
  ["swiglu", 2 * 18944, 3584, 16, [0, 18944, 18944, 2 * 18944]],
  ["swiglu", 2 * 8960, 1536, 6, [8960, 2 * 8960]],
] as const)("%s, [T, K] x [%i, %i], rank %i at %j: few rows have the bits of many", (name, N, K, rank, spans) => {
  scope(() =>
    noGrad(() => {
      const whole = draw(N, K, rank, spans);
      const { one, two } = OPERATORS[name]!;
      const expected = two(whole);
      for (const rows of [1, 8, 37, 64, 65, 128, 1024]) {
        const same = all(eq(one(firstRows(whole, rows)), slice(expected, 0, 0, rows)));
        expect(same.item(), `${rows} rows`).toBe(1);
      }
    }),
  );
});

gpuTest("rows and columns that fill no tile, and factors that the kernels leave to ATen", () => {
  for (const [N, K, rank, spans] of [
    [112, 256, 6, [8, 24, 40, 112]],
    [16, 128, 2, [0, 8, 8, 16]],
    [48, 128, 3, [0, 48]],
    [68, 384, 4, [0, 12, 12, 68]],
    [48, 100, 8, [16, 32]],
    [112, 8448, 16, [0, 112]],
  ] as const) {
    scope(() =>
      noGrad(() => {
        const whole = draw(N, K, rank, spans);
        for (const [name, { one, two }] of Object.entries(OPERATORS)) {
          for (const rows of [1, 37, 64, 65, 128, 300]) {
            const few = firstRows(whole, rows);
            expect(all(eq(one(few), two(few))).item(), `${name} [${N}, ${K}], ${rows} rows`).toBe(1);
          }
        }
      }),
    );
  }
});

gpuTest("gates so large that the short division of SiLU does not do for what the adapter makes of them", () => {
  scope(() =>
    noGrad(() => {
      const drawn = draw(2 * 144, 512, 16, [0, 144]);
      const [a, b, spans, scale] = drawn.lora;
      const whole: Case = { ...drawn, lora: [a, mul(b, 64), spans, scale] };
      const few = firstRows(whole, 64);
      expect(all(eq(OPERATORS.swiglu!.one(few), OPERATORS.swiglu!.two(few))).item()).toBe(1);
    }),
  );
});

gpuTest("what does not fit is refused before a kernel reads it", () => {
  scope(() =>
    noGrad(() => {
      const { x, weight, residual, bias, lora } = firstRows(draw(112, 512, 16, [0, 112]), 37);
      const less = contiguous(slice(residual, 0, 0, 36));
      expect(() => loraLinear(x, weight, null, less, ...lora)).toThrow(
        /expected residual \[37, 112\], got \[36, 112\]/,
      );
      expect(() => loraLinearResidualHalves(x, weight, less, ...lora)).toThrow(/expected residual \[37, 112\]/);
      const short = contiguous(slice(bias, 0, 0, 104));
      expect(() => loraLinear(x, weight, short, null, ...lora)).toThrow(/expected bias \[112\], got \[104\]/);
    }),
  );
});

gpuTest("their gradients are those of the CPU in float32", () => {
  const spans = [0, 64, 128, 192];
  scope(() => {
    const { x, weight, residual, bias, lora } = draw(192, 96, 4, spans);
    const [a, b] = lora;
    const small = draw(96, 192, 4, [0, 96]);
    const runs: [Tensor[], (leaves: Tensor[]) => Tensor][] = [
      [[x, a, b, bias], ([x, a, b, bias]) => loraLinear(x!, place(weight, x!), bias!, null, a!, b!, spans, 2)],
      [[x, a, b, residual], ([x, a, b, add]) => loraLinear(x!, place(weight, x!), null, add!, a!, b!, spans, 2)],
      [
        [small.residual, draw(384, 96, 4, [0, 96]).residual, small.lora[0], small.lora[1]],
        ([h, gateUp, a, b]) => loraSwigluDown(h!, gateUp!, place(small.weight, h!), a!, b!, [0, 96], 2),
      ],
    ];
    for (const [inputs, run] of runs) {
      const gradients = (move: (tensor: Tensor) => Tensor) => {
        const leaves = inputs.map((tensor) => detach(move(tensor)).setRequiresGrad(true));
        for (const leaf of leaves) leaf.setGrad(zerosLike(leaf));
        const out = enableGrad(() => run(leaves));
        backward([out], [move(slice(clone(residual), 1, 0, out.size(1)))]);
        return leaves.map((leaf) => leaf.grad?.toNumbers() as number[]);
      };
      const found = gradients((tensor) => contiguous(clone(tensor)));
      const exact = gradients((tensor) => to(contiguous(tensor), { device: "cpu", dtype: "float32" }));
      for (const [i, values] of found.entries()) expect(relativeError(values, exact[i] as number[])).toBeLessThan(2e-2);
    }
  });
});

/** A weight where x is, in its type. */
const place = (weight: Tensor, x: Tensor) => to(weight, { device: x.device, dtype: x.dtype });
