/** Products with an adapter in one operator, as on the CPU: those of ATen with lora_add_ behind, gradients too. */

import { expect, test } from "vitest";
import { backward, enableGrad, noGrad } from "../../src/torch/autograd.ts";
import { op } from "../../src/torch/dispatch.ts";
import { clone, detach, randn, slice } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const linearResidualHalves = op("grove::linear_residual_halves");
const swiglu = op("grove::swiglu");
const swigluDown = op("grove::swiglu_down");
const loraAdd_ = op("grove::lora_add_");
const loraLinear = op("grove::lora_linear");
const loraSwigluDown = op("grove::lora_swiglu_down");
const loraLinearResidualHalves = op("grove::lora_linear_residual_halves");
const loraLinearSwiglu = op("grove::lora_linear_swiglu");

const [T, K, N, RANK] = [5, 7, 12, 3];
const SPANS = [1, 4, 4, 11];
type Tensors = Record<"x" | "weight" | "bias" | "residual" | "gateUp" | "a" | "b", Tensor>;

function draw(): Tensors {
  using generator = new Generator(8, "cpu");
  const random = (...size: number[]) => randn(size, { dtype: "float64", generator });
  return {
    x: random(T, K),
    weight: random(N, K),
    bias: random(N),
    residual: random(T, N),
    gateUp: random(T, 2 * K),
    a: random(2 * RANK, K),
    b: random(10, RANK),
  };
}

const TRAINED: Record<string, [one: (t: Tensors) => Tensor, two: (t: Tensors) => Tensor]> = {
  plain: [
    ({ x, weight, a, b }) => loraLinear(x, weight, null, null, a, b, SPANS, 2),
    ({ x, weight, a, b }) => loraAdd_(linear(x, weight, null), x, a, b, SPANS, 2),
  ],
  bias: [
    ({ x, weight, bias, a, b }) => loraLinear(x, weight, bias, null, a, b, SPANS, 2),
    ({ x, weight, bias, a, b }) => loraAdd_(linear(x, weight, bias), x, a, b, SPANS, 2),
  ],
  residual: [
    ({ x, weight, residual, a, b }) => loraLinear(x, weight, null, residual, a, b, SPANS, 2),
    ({ x, weight, residual, a, b }) => loraAdd_(linearResidual(x, weight, residual), x, a, b, SPANS, 2),
  ],
  "swiglu and down": [
    ({ residual, gateUp, weight, a, b }) => loraSwigluDown(residual, gateUp, weight, a, b, SPANS, 2),
    ({ residual, gateUp, weight, a, b }) =>
      loraAdd_(swigluDown(residual, gateUp, weight), swiglu(gateUp), a, b, SPANS, 2),
  ],
};

test.each(Object.entries(TRAINED))("%s: values and every gradient", (_, [one, two]) => {
  scope(() => {
    const drawn = draw();
    const gradients = (run: (t: Tensors) => Tensor) => {
      const leaves = Object.fromEntries(
        Object.entries(drawn).map(([name, tensor]) => [name, detach(clone(tensor)).setRequiresGrad(true)]),
      ) as Tensors;
      const out = enableGrad(() => run(leaves));
      const values = out.toNumbers();
      backward([out], [clone(drawn.residual)]);
      return { values, grads: Object.values(leaves).map((leaf) => leaf.grad?.toNumbers() ?? null) };
    };
    const [found, expected] = [gradients(one), gradients(two)];
    expect(relativeError(found.values, expected.values)).toBeLessThan(1e-14);
    for (const [i, grad] of expected.grads.entries()) {
      const got = found.grads[i];
      if (grad === null) expect(got).toBeNull();
      else expect(relativeError(got as number[], grad)).toBeLessThan(1e-13);
    }
  });
});

test("those of a decode step", () => {
  scope(() =>
    noGrad(() => {
      const { x, weight, residual, a, b } = draw();
      const product = linear(x, weight, null);
      expect(loraLinearSwiglu(x, weight, a, b, SPANS, 2).toNumbers()).toEqual(
        swiglu(loraAdd_(product, x, a, b, SPANS, 2)).toNumbers(),
      );
      expect(loraLinearResidualHalves(x, weight, residual, a, b, SPANS, 2).toNumbers()).toEqual(
        loraAdd_(linearResidualHalves(x, weight, residual), x, a, b, SPANS, 2).toNumbers(),
      );
    }),
  );
});

test("what does not fit is refused with both sizes", () => {
  scope(() => {
    const { x, weight, bias, residual, a, b } = draw();
    expect(() => loraLinear(x, weight, bias, residual, a, b, SPANS, 2)).toThrow("got both");
    expect(() => loraLinear(x, weight, bias, null, a, b, [1, 4, 3, 11], 2)).toThrow("ascend");
    expect(() => loraLinear(x, weight, bias, null, a, b, [1, 4, 6, 13], 2)).toThrow("size mismatch");
    const [bigger, less] = [randn([T + 1, N]), slice(bias, 0, 0, N - 1)];
    expect(() => loraLinear(x, weight, null, bigger, a, b, SPANS, 2)).toThrow(
      /expected residual \[5, 12\], got \[6, 12\]/,
    );
    expect(() => loraLinearResidualHalves(x, weight, bigger, a, b, SPANS, 2)).toThrow(/expected residual \[5, 12\]/);
    expect(() => loraLinear(x, weight, less, null, a, b, SPANS, 2)).toThrow(/expected bias \[12\], got \[11\]/);
    expect(() => loraLinear(x, residual, null, null, a, b, SPANS, 2)).toThrow(/weight \[N, K\]|size mismatch/);
    expect(() => loraLinearSwiglu(x, slice(weight, 0, 0, 11), a, b, SPANS, 2)).toThrow(
      /even number of rows, got \[11, 7\]/,
    );
    expect(() => loraSwigluDown(residual, residual, weight, a, b, SPANS, 2)).toThrow("gate_up [T, 2 I]");
  });
});
