/** Chunked log-probabilities against autograd over the whole logits. */

import { expect, test } from "vitest";
import { entropyGradient } from "../../src/model/entropy-gradient.ts";
import { ChunkedLogprobs } from "../../src/model/lm-head.ts";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import { opN } from "../../src/torch/dispatch.ts";
import {
  cast,
  detach,
  exp,
  gather,
  linear,
  logSoftmax,
  logsumexp,
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

const tokenLogprobs = opN("grove::token_logprobs");

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

test.each([1, 4, 100])("gradients of log-probabilities and entropies together, chunks of %s rows", (chunkRows) => {
  scope(() => {
    using generator = new Generator(3);
    for (const [dtype, tolerance] of [
      ["float64", 1e-13],
      ["float32", 1e-5],
      ["bfloat16", 2e-2],
    ] as const) {
      const exact = (shape: number[]) => cast(cast(randn(shape, { generator }), dtype), "float64");
      const [hidden, head] = [exact([13, 6]), exact([9, 6]).setRequiresGrad(true)];
      const [dLogprobs, dEntropy] = [exact([13]), exact([13])];
      const targets = () => fromArray([0, 8, 3, 3, 1, 2, 4, 5, 6, 7, 0, 0, 8], [13], { dtype: "int64" });

      const leaf = detach(hidden).setRequiresGrad(true);
      const [expected, entropy] = enableGrad(() => {
        const logp = logSoftmax(linear(leaf, head), 1);
        return [squeeze(gather(logp, 1, unsqueeze(targets(), 1)), 1), neg(sum(mul(exp(logp), logp), 1))] as const;
      });
      backward([expected, entropy], [dLogprobs, dEntropy]);

      const own = cast(detach(head), dtype).setRequiresGrad(true);
      const wide = dtype === "float64" ? dtype : "float32";
      using ours = new ChunkedLogprobs(cast(hidden, dtype), own, targets(), { backward: true, chunkRows });
      const found = ours.backward(cast(dLogprobs, wide), cast(dEntropy, wide));
      expect(found.dtype).toBe(dtype);
      expect(relativeError(cast(found, "float64").toNumbers(), (leaf.grad as Tensor).toNumbers())).toBeLessThan(
        tolerance,
      );
      const headGrad = cast(own.grad as Tensor, "float64").toNumbers();
      expect(relativeError(headGrad, (head.grad as Tensor).toNumbers())).toBeLessThan(tolerance);
      head.setGrad(null);
      own.setGrad(null);
    }
  });
});

test.each([5, 14, 1000])("the entropy's gradient in slices of %s logits of [5, 7]", (sliceLogits) => {
  scope(() => {
    using generator = new Generator(4);
    const logits = randn([5, 7], { dtype: "float64", generator }).setRequiresGrad(true);
    const dEntropy = randn([5, 1], { dtype: "float64", generator });
    const entropy = enableGrad(() => {
      const logp = logSoftmax(logits, 1);
      return unsqueeze(neg(sum(mul(exp(logp), logp), 1)), 1);
    });
    backward([entropy], [dEntropy]);
    const flat = detach(logits);
    const found = entropyGradient(flat, unsqueeze(logsumexp(flat, 1), 1), detach(entropy), dEntropy, sliceLogits);
    expect(relativeError(found.toNumbers(), (logits.grad as Tensor).toNumbers())).toBeLessThan(1e-13);
  });
});

test("a logit of minus infinity counts for nothing, in the entropy and in its gradient", () => {
  scope(() => {
    const none = Number.NEGATIVE_INFINITY;
    for (const dtype of ["float32", "float64"] as const) {
      const logits = fromArray([0.5, none, 2, -1, none], [1, 5], { dtype });
      const others = fromArray([0.5, 2, -1], [1, 3], { dtype });
      const [logprob, entropy] = tokenLogprobs(logits, fromArray([2], [1], { dtype: "int64" }));
      const [otherLogprob, otherEntropy] = tokenLogprobs(others, fromArray([1], [1], { dtype: "int64" }));
      expect(logprob?.item()).toBeCloseTo(otherLogprob?.item() as number, 6);
      expect(entropy?.item()).toBeCloseTo(otherEntropy?.item() as number, 6);
      const gradientOf = (x: Tensor, ofEntropy: Tensor) =>
        entropyGradient(
          x,
          unsqueeze(logsumexp(x, 1), 1),
          unsqueeze(ofEntropy, 1),
          fromArray([1], [1, 1], { dtype }),
        ).toNumbers();
      const [a, , b, c] = gradientOf(logits, entropy as Tensor);
      const expected = gradientOf(others, otherEntropy as Tensor);
      expect([a, b, c]).toEqual(expected.map((x) => expect.closeTo(x, 6)));
      expect(gradientOf(logits, entropy as Tensor).filter((x) => x === 0)).toHaveLength(2);
    }
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
