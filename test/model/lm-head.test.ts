/** Chunked log-probabilities against autograd over the whole logits. */

import { expect, test } from "vitest";
import { ChunkedLogprobs } from "../../src/model/lm-head.ts";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import {
  cast,
  detach,
  exp,
  gather,
  linear,
  logSoftmax,
  mul,
  neg,
  randn,
  squeeze,
  sum,
  unsqueeze,
  zeros,
} from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

test.each([1, 4, 7, 100])("chunks of %s rows", (chunkRows) => {
  scope(() => {
    using generator = new Generator(1);
    const double = { dtype: "float64", generator } as const;
    const hidden = randn([13, 6], double);
    const head = randn([9, 6], double).setRequiresGrad(true);
    const targets = () => fromArray([0, 8, 3, 3, 1, 2, 4, 5, 6, 7, 0, 0, 8], [13], { dtype: "int64" });
    const dLogprobs = randn([13], double);

    const leaf = detach(hidden).setRequiresGrad(true);
    const logp = enableGrad(() => logSoftmax(linear(leaf, head), 1));
    const expected = enableGrad(() => squeeze(gather(logp, 1, unsqueeze(targets(), 1)), 1));
    const entropy = neg(sum(mul(exp(detach(logp)), detach(logp)), 1));
    backward([expected], [dLogprobs]);
    const dHead = (head.grad as Tensor).toNumbers();

    head.setGrad(zeros([9, 6], { dtype: "float64" }));
    using ours = new ChunkedLogprobs(hidden, head, targets(), { backward: true, chunkRows });
    expect(relativeError(ours.logprobs.toNumbers(), expected.toNumbers())).toBeLessThan(1e-13);
    expect(relativeError(ours.entropy.toNumbers(), entropy.toNumbers())).toBeLessThan(1e-13);
    expect(relativeError(ours.backward(dLogprobs).toNumbers(), (leaf.grad as Tensor).toNumbers())).toBeLessThan(1e-13);
    expect(relativeError((head.grad as Tensor).toNumbers(), dHead)).toBeLessThan(1e-13);

    // without what the forward kept, the backward computes it again
    head.setGrad(null);
    using forgetful = new ChunkedLogprobs(hidden, head, targets(), { backward: false, chunkRows });
    expect(relativeError(forgetful.backward(dLogprobs).toNumbers(), (leaf.grad as Tensor).toNumbers())).toBeLessThan(
      1e-13,
    );
    expect(relativeError((head.grad as Tensor).toNumbers(), dHead)).toBeLessThan(1e-13);
    head.setGrad(null);
  });
});

test("bfloat16 logits are normalised in float32", () => {
  scope(() => {
    using generator = new Generator(2);
    const half = (shape: number[]) => cast(randn(shape, { generator }), "bfloat16");
    const [hidden, head] = [half([5, 6]), half([9, 6])];
    const ids = fromArray([0, 8, 3, 1, 2], [5], { dtype: "int64" });
    const exact = logSoftmax(cast(linear(hidden, head), "float64"), 1);
    using ours = new ChunkedLogprobs(hidden, head, ids, { backward: false });
    for (const values of [ours.logprobs, ours.entropy]) expect(values.dtype).toBe("float32");
    expect(relativeError(ours.logprobs.toNumbers(), gather(exact, 1, unsqueeze(ids, 1)).toNumbers())).toBeLessThan(
      1e-6,
    );
    expect(relativeError(ours.entropy.toNumbers(), neg(sum(mul(exp(exact), exact), 1)).toNumbers())).toBeLessThan(1e-6);
  });
});

test("no rows at all", () => {
  scope(() => {
    using empty = new ChunkedLogprobs(zeros([0, 6]), zeros([9, 6]), fromArray([], [0], { dtype: "int64" }), {
      backward: true,
    });
    expect(empty.logprobs.shape).toEqual([0]);
  });
});
