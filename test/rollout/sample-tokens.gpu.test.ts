/** The kernel behind grove::sample_tokens against the plain composition, the trainer's log-probabilities, and the distribution itself. */

import { expect } from "vitest";
import { normal } from "../../src/random.ts";
import { type SamplingOptions, TokenSampler } from "../../src/rollout/sample-token.ts";
import { opN } from "../../src/torch/dispatch.ts";
import { cat, slice } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";
import {
  chiSquare,
  drawByComposition,
  drawByOperator,
  entropyOf,
  greedy,
  normalLogits,
  plain,
  slotState,
  WAYS,
} from "./sample-tokens-check.ts";

gpuTest.each(WAYS)("draws what the composition draws in float32: %s", (_, options) => {
  for (const vocab of [2, 31, 257, 1024, 1025, 5003]) {
    scope(() => {
      const forbidden = vocab > 3 ? [0, vocab - 1, 17 % vocab] : [];
      const logits = normalLogits(24, vocab, 3, "float32", "cuda");
      const got = drawByOperator({ logits, options, forbidden });
      const expected = drawByComposition({ logits, options, forbidden });
      expect(got.ids).toEqual(expected.ids);
      for (const what of ["logprobs", "sampledLogprobs", "entropies"] as const) {
        expect(got[what]).toEqual(expected[what].map((x) => expect.closeTo(x, 4)));
      }
    });
  }
});

gpuTest("a vocabulary of 152,064 in bfloat16: the likeliest tokens, and figures of all", () => {
  scope(() => {
    const [rows, vocab] = [5, 152_064];
    const logits = normalLogits(rows, vocab, 2, "bfloat16", "cuda");
    const forbidden = [3, vocab - 1];
    const values = logits.toNumbers();
    expect(drawByOperator({ logits, options: greedy, forbidden }).ids).toEqual(
      drawByComposition({ logits, options: greedy, forbidden }).ids,
    );
    for (const options of [plain, { ...plain, temperature: 0.6 }, { ...plain, topK: 20 }, { ...plain, topP: 0.5 }]) {
      const got = drawByOperator({ logits, options, forbidden });
      got.ids.forEach((id, r) => {
        const row = values.slice(r * vocab, (r + 1) * vocab);
        const max = row.reduce((a, b) => Math.max(a, b));
        const total = row.reduce((sum, x) => sum + Math.exp(x - max), 0);
        expect(got.logprobs[r]).toBeCloseTo((row[id] as number) - max - Math.log(total), 4);
        if (options.topK > 0) expect(row.filter((x) => x > (row[id] as number)).length).toBeLessThan(options.topK);
      });
    }
  });
});

gpuTest("sampler and trainer get the same bits, whatever else is in the batch", () => {
  const tokenLogprobs = opN("grove::token_logprobs");
  scope(() => {
    const all = normalLogits(40, 9001, 4, "bfloat16", "cuda");
    const options = { ...plain, temperature: 0.9 };
    const together = drawByOperator({ logits: all, options, forbidden: [] });
    const ids = fromArray(together.ids, [40], { dtype: "int64", device: "cuda" });
    const [logprob, entropy] = tokenLogprobs(all, ids) as [Tensor, Tensor];
    expect(logprob.toNumbers()).toEqual(together.logprobs);
    expect(entropy.toNumbers()).toEqual(together.entropies);
    const alone = drawByOperator({ logits: slice(all, 0, 0, 1), options, forbidden: [] });
    expect(Object.values(alone)).toEqual(Object.values(together).map((column) => column.slice(0, 1)));
    const among = drawByOperator({ logits: cat([slice(all, 0, 0, 7), all]), options, forbidden: [] });
    for (const [what, column] of Object.entries(among)) {
      expect(column.slice(0, 7)).toEqual(together[what as keyof typeof together].slice(0, 7));
    }
  });
});

gpuTest("token_logprobs agrees with log_softmax for every dtype and odd sizes", () => {
  const [fused, composed] = [opN("grove::token_logprobs"), opN("grove::token_logprobs_composed")];
  scope(() => {
    for (const dtype of ["float32", "float64", "bfloat16", "float16"] as const) {
      for (const vocab of [1, 9, 1000, 4099]) {
        const logits = normalLogits(7, vocab, 3, dtype, "cuda");
        const ids = fromArray(
          Array.from({ length: 7 }, (_, r) => (r * 31) % vocab),
          [7],
          { dtype: "int64", device: "cuda" },
        );
        const [got, expected] = [fused(logits, ids), composed(logits, ids)];
        for (const i of [0, 1]) {
          expect(got[i]!.toNumbers()).toEqual(expected[i]!.toNumbers().map((x) => expect.closeTo(x, 4)));
        }
      }
    }
  });
});

/** 100,000 ids drawn for one row of bfloat16 logits: 1,000 completions of 100 tokens. */
function drawMany(values: Float32Array, options: SamplingOptions, forbidden: number[]): number[] {
  return scope(() => {
    const [slots, tokens, vocab] = [1000, 100, values.length];
    const logits = fromArray(values, [1, vocab], { dtype: "bfloat16", device: "cuda" });
    const int32 = (items: Int32Array) => fromArray(items, [slots], { dtype: "int32", device: "cuda" });
    const source = int32(new Int32Array(slots));
    const every = int32(Int32Array.from({ length: slots }, (_, s) => s));
    const state = slotState(new Array<number>(slots).fill(0), tokens, "cuda");
    using sampler = new TokenSampler(vocab, forbidden, options, "cuda");
    for (let t = 0; t < tokens; t++) sampler.advance(logits, source, every, state);
    expect(new Set(state.done.toNumbers())).toEqual(new Set([1]));
    return state.ids.toNumbers();
  });
}

gpuTest.each([
  [300, 1.5, plain],
  [300, 1.5, { ...plain, temperature: 0.7 }],
  [300, 1.5, { ...plain, topP: 0.9 }],
  [300, 1.5, { ...plain, topK: 50 }],
  [152_064, 3, plain],
  [152_064, 3, { ...plain, temperature: 0.8, topP: 0.95 }],
] as const)("100,000 draws from %i ids in bfloat16 fit the distribution: spread %d, %j", (vocab, spread, options) => {
  const rounded = scope(() =>
    fromArray(
      Float32Array.from({ length: vocab }, (_, i) => spread * normal("chi", vocab, i)),
      [vocab],
      {
        dtype: "bfloat16",
      },
    ).toNumbers(),
  );
  const forbidden = [2];
  const tempered = rounded.map((x, id) =>
    forbidden.includes(id) ? Number.NEGATIVE_INFINITY : x / options.temperature,
  );
  const order = [...tempered.keys()].sort((a, b) => (tempered[b] as number) - (tempered[a] as number));
  const max = tempered[order[0] as number] as number;
  let weights = tempered.map((x) => Math.exp(x - max));
  // what ties with the last one kept is kept
  const keepFrom = (edge: number) => {
    weights = weights.map((w, id) => ((tempered[id] as number) >= edge ? w : 0));
  };
  if (options.topK > 0) keepFrom(tempered[order[options.topK - 1] as number] as number);
  if (options.topP < 1) {
    const total = weights.reduce((a, b) => a + b, 0);
    let above = 0;
    let last = 0;
    while (above < options.topP * total) above += weights[order[last++] as number] as number;
    keepFrom(tempered[order[last - 1] as number] as number);
  }
  const total = weights.reduce((a, b) => a + b, 0);
  // The likeliest ids by themselves, the others in 50 bins.
  const bin = new Int32Array(vocab);
  order.forEach((id, rank) => {
    bin[id] = rank < 150 ? rank : 150 + (id % 50);
  });
  const [counts, probabilities] = [new Array<number>(200).fill(0), new Array<number>(200).fill(0)];
  const ids = drawMany(Float32Array.from(rounded), options, forbidden);
  for (const id of ids) counts[bin[id] as number]!++;
  expect(ids.filter((id) => weights[id] === 0)).toEqual([]);
  weights.forEach((w, id) => {
    probabilities[bin[id] as number]! += w / total;
  });
  const { statistic, limit } = chiSquare(counts, probabilities);
  expect(statistic).toBeLessThan(limit);
});

gpuTest("a NaN shows in a slot that runs and does no harm to one that does not", () => {
  scope(() => {
    const values = new Float32Array(2 * 3000).fill(1);
    values[7] = values[3007] = Number.NaN;
    for (const [, options] of WAYS) {
      using sampler = new TokenSampler(3000, [3], options, "cuda");
      const state = slotState([0, 0], 8, "cuda");
      const int32 = (items: number[]) =>
        fromArray(Int32Array.from(items), [items.length], { dtype: "int32", device: "cuda" });
      state.done = int32([0, 1]);
      sampler.advance(fromArray(values, [2, 3000], { device: "cuda" }), int32([0, 1]), int32([0, 1]), state);
      expect(state.logprobs.toNumbers()[0]).toBeNaN();
      expect(state.logprobs.toNumbers().slice(8)).toEqual(new Array(8).fill(-1));
      expect(state.ownLength.toNumbers()).toEqual([0, -1]);
    }
  });
});

gpuTest("entropy of certainty is 0, of a uniform distribution log V", () => {
  scope(() => {
    const values = new Float32Array(2 * 5000).fill(-3);
    values[4321] = 200;
    const logits = fromArray(values, [2, 5000], { dtype: "bfloat16", device: "cuda" });
    const { entropies, ids } = drawByOperator({ logits, options: plain, forbidden: [] });
    expect(ids[0]).toBe(4321);
    expect(entropies).toEqual([expect.closeTo(0, 6), expect.closeTo(entropyOf(new Array(5000).fill(0)), 4)]);
  });
});
