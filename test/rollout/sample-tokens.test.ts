/** grove::sample_tokens on the CPU against the plain composition of operators. */

import { expect, test } from "vitest";
import { DTypeError, ShapeError } from "../../src/errors.ts";
import { TokenSampler } from "../../src/rollout/sample-token.ts";
import { opN } from "../../src/torch/dispatch.ts";
import { logSoftmax, zeros } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import {
  atEdges,
  chiSquare,
  drawByComposition,
  drawByOperator,
  entropyOf,
  normalLogits,
  plain,
  slotState,
  WAYS,
} from "./sample-tokens-check.ts";

type Drawn = ReturnType<typeof drawByOperator>;

/** Expects the same of every row but those whose draw rounding decides, of which there are few. */
function expectSameBut(edges: ReadonlySet<number>, got: Drawn, expected: Drawn): void {
  expect(edges.size).toBeLessThanOrEqual(expected.ids.length / 4);
  for (const [i, id] of expected.ids.entries()) {
    expect(got.entropies[i]).toBeCloseTo(expected.entropies[i] as number, 5);
    if (edges.has(i)) continue;
    expect(got.ids[i]).toBe(id);
    expect(got.logprobs[i]).toBeCloseTo(expected.logprobs[i] as number, 5);
    expect(got.sampledLogprobs[i]).toBeCloseTo(expected.sampledLogprobs[i] as number, 5);
  }
}

test.each(WAYS)("draws what the composition draws: %s", (_, options) => {
  for (const vocab of [2, 3, 31, 257, 1000, 5003]) {
    scope(() => {
      const forbidden = vocab > 3 ? [0, vocab - 1, 17 % vocab] : [];
      const logits = normalLogits(24, vocab, 3, "float32", "cpu");
      const got = drawByOperator({ logits, options, forbidden });
      expectSameBut(atEdges({ logits, options, forbidden }), got, drawByComposition({ logits, options, forbidden }));
      const rows = logits.toNumbers();
      got.entropies.forEach((h, i) => {
        expect(h).toBeCloseTo(entropyOf(rows.slice(i * vocab, (i + 1) * vocab)), 5);
      });
    });
  }
});

test("bfloat16 logits, with many ties: kept or dropped together", () => {
  scope(() => {
    const logits = normalLogits(64, 3000, 2, "bfloat16", "cpu");
    for (const options of [
      plain,
      { ...plain, topK: 50 },
      { ...plain, topP: 0.9 },
      { temperature: 0.9, topK: 50, topP: 0.9 },
    ]) {
      const given = { logits, options, forbidden: [1] };
      expectSameBut(atEdges(given), drawByOperator(given), drawByComposition(given));
    }
  });
});

test("equal logits and those of minus infinity", () => {
  const low = Number.NEGATIVE_INFINITY;
  scope(() => {
    const logits = fromArray([low, 2, low, 2, 2, low], [1, 6]);
    const { ids, logprobs, entropies } = drawByOperator({ logits, options: plain, forbidden: [] }, 200);
    expect(new Set(ids)).toEqual(new Set([1, 3, 4]));
    expect(logprobs[0]).toBeCloseTo(-Math.log(3), 6);
    expect(entropies[0]).toBeCloseTo(Math.log(3), 6);
    expect(drawByOperator({ logits, options: { ...plain, greedy: true }, forbidden: [1] }).ids).toEqual([3]);
  });
});

test("40,000 draws by keys fit the distribution", () => {
  scope(() => {
    const values = [0.1, 1.5, -0.4, 0.9, 2, -1, 0.3, 1.1, -2, 0.7];
    const logits = fromArray(values, [1, 10]);
    const { ids } = drawByOperator({ logits, options: { ...plain, temperature: 0.8 }, forbidden: [1] }, 40_000);
    const counts = values.map((_, id) => ids.filter((x) => x === id).length);
    const weights = values.map((x, id) => (id === 1 ? 0 : Math.exp(x / 0.8)));
    const total = weights.reduce((a, b) => a + b, 0);
    const { statistic, limit } = chiSquare(
      counts,
      weights.map((w) => w / total),
    );
    expect(statistic).toBeLessThan(limit);
  });
});

/** Logits that leave no choice: row i takes token i + 1. */
function certain(rows: number, vocab: number): Tensor {
  const values = new Float32Array(rows * vocab).fill(-100);
  for (let i = 0; i < rows; i++) values[i * vocab + i + 1] = 100;
  return fromArray(values, [rows, vocab]);
}
const int32 = (values: number[]) => fromArray(Int32Array.from(values), [values.length], { dtype: "int32" });

test("a draw advances its slot, and no other", () => {
  scope(() => {
    using sampler = new TokenSampler(9, [], plain, "cpu", [2]);
    const state = slotState([0, 3, 1, 2, 7, 8], 8, "cpu");
    state.done = int32([0, 0, 1, 0, 0, 0]);
    // draws: row 0 for slot 3; row 1 (a stop id) for slot 0; row 2 for the ended slot 2; none; row 3 for slot 4, its last; row 4 for slot 5, which is full
    sampler.advance(certain(5, 9), int32([0, 1, 2, 0, 3, 4]), int32([3, 0, 2, -1, 4, 5]), state);
    expect(state.tokens.toNumbers()).toEqual([2, -1, -1, 1, 4, -1]);
    expect(state.ownLength.toNumbers()).toEqual([0, 2, 0, 2, 7, 7]);
    expect(state.done.toNumbers()).toEqual([1, 0, 1, 0, 1, 0]);
    expect(state.ropePositions.toNumbers()).toEqual(
      [0, 1, 2].flatMap((axis) => [1, 0, 0, 1, 1, 0].map((moved, s) => 100 * (6 * axis + s) + moved)),
    );
    const ids = new Array<number>(48).fill(-1);
    ids[0] = 2;
    ids[3 * 8 + 2] = 1;
    ids[4 * 8 + 7] = 4;
    expect(state.ids.toNumbers()).toEqual(ids);
    for (const x of [state.logprobs, state.sampledLogprobs, state.entropies]) {
      expect(x.toNumbers()).toEqual(ids.map((id) => (id < 0 ? -1 : expect.closeTo(0, 6))));
    }
  });
});

test("a limit ends a slot", () => {
  scope(() => {
    using sampler = new TokenSampler(9, [], plain, "cpu");
    const state = slotState([0, 1, 2], 8, "cpu");
    state.limit = int32([1, 3, 3]);
    sampler.advance(certain(3, 9), int32([0, 1, 2]), int32([0, 1, 2]), state);
    expect(state.done.toNumbers()).toEqual([1, 0, 1]);
  });
});

test("what is not a number shows in a slot that runs and does no harm to one that does not", () => {
  scope(() => {
    const values = new Float32Array(2 * 300).fill(1);
    values[7] = values[307] = Number.NaN;
    for (const options of WAYS.map(([, o]) => o)) {
      using sampler = new TokenSampler(300, [3], options, "cpu");
      const state = slotState([0, 0], 8, "cpu");
      state.done = int32([0, 1]);
      sampler.advance(fromArray(values, [2, 300]), int32([0, 1]), int32([0, 1]), state);
      expect(state.logprobs.toNumbers()[0]).toBeNaN();
      expect(state.logprobs.toNumbers().slice(8)).toEqual(new Array(8).fill(-1));
    }
  });
});

test("refuses sizes, dtypes and rows that do not fit", () => {
  scope(() => {
    using sampler = new TokenSampler(9, [], plain, "cpu");
    const state = slotState([0, 0], 8, "cpu");
    const logits = certain(2, 9);
    const draw =
      (source: number[], slot: number[], s = state) =>
      () =>
        sampler.advance(logits, int32(source), int32(slot), s);
    expect(draw([2], [0])).toThrow(/draw 0 is from row 2 of 2/);
    expect(draw([0], [2])).toThrow(/for slot 2 of 2/);
    expect(draw([0, 1], [0])).toThrow(ShapeError);
    expect(draw([0], [0], { ...state, tokens: state.limit })).toThrow(DTypeError);
    expect(() => sampler.advance(zeros([1, 0]), int32([0]), int32([0]), state)).toThrow(/expected logits \[R, V\]/);
    expect(() => sampler.advance(certain(2, 99), int32([0]), int32([0]), state)).toThrow(
      /expected forbidden \[4\], got \[1\]/,
    );
  });
});

test("token_logprobs: log-probability of given ids, and entropy", () => {
  const tokenLogprobs = opN("grove::token_logprobs");
  scope(() => {
    for (const dtype of ["float32", "float64", "bfloat16"] as const) {
      const logits = normalLogits(5, 77, 2, dtype, "cpu");
      const ids = [0, 76, 3, 3, 50];
      const [logprob, entropy] = tokenLogprobs(logits, fromArray(ids, [5], { dtype: "int64" })) as [Tensor, Tensor];
      expect(logprob.dtype).toBe(dtype === "float64" ? "float64" : "float32");
      const all = logSoftmax(logits, -1, "float64").toNumbers();
      expect(logprob.toNumbers()).toEqual(ids.map((id, r) => expect.closeTo(all[77 * r + id] as number, 5)));
      const rows = logits.toNumbers();
      expect(entropy.toNumbers()).toEqual(
        ids.map((_, r) => expect.closeTo(entropyOf(rows.slice(77 * r, 77 * r + 77)), 5)),
      );
    }
  });
});
