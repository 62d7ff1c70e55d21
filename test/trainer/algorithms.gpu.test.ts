/** Losses, the entropy's gradient and the moving reference on a GPU: what the CPU gives. */

import { expect } from "vitest";
import { LOSS_NAMES } from "../../src/config/algorithm.ts";
import { configSchema } from "../../src/config/schema.ts";
import { ChunkedLogprobs } from "../../src/model/lm-head.ts";
import type { Parameter } from "../../src/model/parameter.ts";
import { cast, randn, slice, to } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { policyLoss } from "../../src/trainer/loss.ts";
import { moveParts, moveReference } from "../../src/trainer/moving-reference.ts";
import { relativeError } from "../model/support.ts";
import { gpuTest } from "../setup/gpu.ts";

const lengths = [1, 33, 257, 5]; // T = 296

gpuTest.each(LOSS_NAMES)("%s: gradient and stats, later update, with KL", (loss) => {
  scope(() => {
    const { trainer } = configSchema.parse({ model: { path: "m" }, trainer: { loss, klEstimator: "k2" } });
    using generator = new Generator(5);
    const T = lengths.reduce((sum, n) => sum + n, 0);
    const draw = (scale: number) =>
      cast(randn([T], { generator }), "float64")
        .toNumbers()
        .map((x) => scale * x);
    const logprobs = draw(1).map((x) => -Math.abs(x));
    const near = (scale: number) => draw(scale).map((x, t) => x + (logprobs[t] as number));
    const [old, reference, sampler, advantages] = [near(0.3), near(0.5), near(1e-3), draw(1)];
    const on = (device: "cpu" | "cuda") =>
      scope(() => {
        const vector = (values: number[]) => fromArray(values, [T], { device });
        const { gradient, stats } = policyLoss(
          {
            ...{ logprobs: vector(logprobs), entropy: vector(logprobs), oldLogprobs: vector(old) },
            ...{ referenceLogprobs: vector(reference), samplerLogprobs: vector(sampler) },
            ...{ advantages: vector(advantages), weights: vector(new Array(T).fill(1 / T)), lengths },
          },
          trainer,
        );
        return [gradient.toNumbers(), stats.toNumbers()] as const;
      });
    const [here, there] = [on("cpu"), on("cuda")];
    expect(relativeError(there[0], here[0])).toBeLessThan(1e-5);
    expect(relativeError(there[1], here[1])).toBeLessThan(1e-5);
    expect(on("cuda")).toEqual(there); // no sum depends on the order of threads
  });
});

gpuTest.each([
  ["float32", 1e-5],
  ["bfloat16", 2e-2],
] as const)("%s: log-probabilities and entropies walked back together", (dtype, tolerance) => {
  scope(() => {
    using generator = new Generator(6);
    const [R, X, V] = [37, 64, 1000];
    const make = (shape: number[]) => cast(randn(shape, { generator }), dtype);
    const [hidden, head] = [make([R, X]), make([V, X])];
    const [dLogprobs, dEntropy] = [randn([R], { generator }), randn([R], { generator })];
    const ids = Array.from({ length: R }, (_, i) => (i * 131) % V);
    const on = (device: "cpu" | "cuda", type: "float64" | typeof dtype) =>
      scope(() => {
        const there = (x: Tensor, as: "float64" | "float32" | typeof dtype) => to(cast(x, as), { device });
        const wide = type === "float64" ? type : "float32";
        const weight = there(head, type).setRequiresGrad(true);
        using ours = new ChunkedLogprobs(there(hidden, type), weight, fromArray(ids, [R], { dtype: "int64", device }), {
          backward: true,
        });
        const found = ours.backward(there(dLogprobs, wide), there(dEntropy, wide));
        const numbers = (x: Tensor) => cast(x, "float64").toNumbers();
        const both = [numbers(found), numbers(weight.grad as Tensor)] as const;
        weight.setGrad(null);
        return both;
      });
    const [exact, found] = [on("cpu", "float64"), on("cuda", dtype)];
    expect(relativeError(found[0], exact[0])).toBeLessThan(tolerance);
    expect(relativeError(found[1], exact[1])).toBeLessThan(tolerance);
  });
});

gpuTest("a bfloat16 average moves as often as it should, and alike each time", () => {
  scope(() => {
    const N = 2 ** 16;
    const half = (value: number) => cast(fromArray(new Array(N).fill(value), [N], { device: "cuda" }), "bfloat16");
    const parameter = (tensor: Tensor): Parameter => ({ name: "w", tensor, parts: [] });
    const moved = () => {
      const [reference, policy] = [half(1), half(1 + 2 ** -7)];
      for (let step = 0; step < 100; step++)
        moveReference([parameter(reference)], [parameter(policy)], { decay: 0.995, seed: 1, step });
      return cast(reference, "float32").toNumbers();
    };
    const values = moved();
    expect(new Set(values)).toEqual(new Set([1, 1 + 2 ** -7]));
    const share = values.filter((value) => value > 1).length / N;
    expect(Math.abs(share - (1 - 0.995 ** 100))).toBeLessThan(4 * Math.sqrt(0.25 / N));
    expect(moved()).toEqual(values);
  });
});

gpuTest("bfloat16: parts of a parameter move to what they become in the whole", () => {
  scope(() => {
    const N = 10_000;
    using generator = new Generator(8);
    const drawn = () => cast(randn([N], { generator }), "bfloat16");
    const [start, policy] = [drawn(), to(drawn(), { device: "cuda" })];
    const [whole, cut] = [to(start, { device: "cuda" }), to(start, { device: "cuda" })];
    const move = { decay: 0.995, seed: 1, step: 3 };
    const parameter = (tensor: Tensor): Parameter => ({ name: "w", tensor, parts: [] });
    moveReference([parameter(whole)], [parameter(policy)], move);
    const parts = [
      [0, 256],
      [256, 9_999],
      [9_999, N],
    ] as const;
    for (const [begin, end] of parts)
      moveParts([{ name: "w", begin, end, own: () => slice(cut, 0, begin, end) }], [parameter(policy)], move);
    expect(cast(cut, "float32").toNumbers()).toEqual(cast(whole, "float32").toNumbers());
    expect(cast(cut, "float32").toNumbers()).not.toEqual(cast(start, "float32").toNumbers());
  });
});
