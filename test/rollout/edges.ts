/**
 * Whether rounding decides a draw. Two ways to the same logits differ in their last bits, on one CPU here, on another there. Where a number that chooses a token
 * lies at the border of two tokens, or a token at the very edge of top-k or of the nucleus, they draw, or report, something else, and neither is wrong.
 * What is established here, from the logits in float64, is that this is so; everywhere else they have to agree.
 */

import { expect } from "vitest";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { philoxUniform, sampleKey } from "../../src/rollout/philox.ts";
import type { SamplingOptions } from "../../src/rollout/sample-token.ts";
import type { RolloutOptions } from "../../src/rollout/sampler.ts";
import type { Completion, Prompt, RolloutGroup } from "../../src/types.ts";
import { FORBIDDEN, passLogprobs } from "./support.ts";

/** How near an edge logits of the tiny model may be for rounding to decide: in nats after temperature, or in probability. */
const ROUNDING = 1e-4;
/** Of the values of one comparison, at most: more would not be rounding. */
const MOST_AT_EDGES = 0.02;

/**
 * How far a draw is from another one: the least of the distances, in nats or in probability, of the logits from an edge of top-k or of the nucleus and of the
 * number `u` from a border of the tokens that are kept.
 * @param logits minus infinity for what is never sampled
 * @param exact whether both draws had these very logits: equal ones were kept or cut together then and are no edge. Others may have differed by a bit.
 */
export function edgeDistance(
  logits: readonly number[],
  { temperature, topK, topP, greedy = false }: SamplingOptions,
  u: number,
  exact: boolean,
): number {
  const x = logits.map((logit) => logit / temperature);
  const ranked = x.filter(Number.isFinite).sort((a, b) => b - a);
  const top = ranked[0] as number;
  /** From the last of `count` values that are kept to the first that is not. */
  const gapAfter = (count: number) => {
    const last = ranked[count - 1] as number;
    const next = exact ? ranked.find((value) => value < last) : ranked[count];
    return last - (next ?? Number.NEGATIVE_INFINITY);
  };
  if (greedy) return gapAfter(1);
  const distances: number[] = [];
  const k = topK > 0 ? Math.min(topK, ranked.length) : ranked.length;
  const kth = ranked[k - 1] as number;
  distances.push(gapAfter(k));
  const weightOf = (value: number) => Math.exp(value - top);
  const total = sumOf(ranked.filter((value) => value >= kth).map(weightOf));
  let least = kth;
  if (topP < 1) {
    let before = 0;
    let count = 0;
    for (const value of ranked.slice(0, k)) {
      if (before > 0) distances.push(Math.abs(before - topP));
      if (before === 0 || before < topP) count++;
      before += weightOf(value) / total;
    }
    least = ranked[count - 1] as number;
    distances.push(gapAfter(count));
  }
  const kept = x.map((value) => (value >= least ? weightOf(value) : 0));
  const whole = sumOf(kept);
  let cumulative = 0;
  for (const weight of kept) {
    cumulative += weight / whole;
    if (weight > 0) distances.push(Math.abs(cumulative - u));
  }
  return Math.min(...distances);
}

/** As edgeDistance, for the token that comes after `before` in completion `index` of a prompt. */
export function distanceAt(
  model: Qwen2VL,
  prompt: Prompt,
  options: RolloutOptions,
  { index, before }: { index: number; before: readonly number[] },
): number {
  const allowed = Array.from({ length: model.config.text.vocabSize }, (_, id) => id).filter(
    (id) => !FORBIDDEN.includes(id),
  );
  const completions = allowed.map((id) => ({ ids: Int32Array.from([...before, id]) }));
  const all = passLogprobs(model, [{ prompt, completions } as unknown as RolloutGroup]);
  const logits = allowed.map((_, i) => all[(i + 1) * (before.length + 1) - 1] as number);
  const key = sampleKey(options.seed, options.step, prompt.sample.id, index);
  return edgeDistance(logits, options, philoxUniform(key, before.length), false);
}

/** A completion, or its beginning, and its number among those of its prompt. */
export type Drawn = Pick<Completion, "ids"> & Partial<Pick<Completion, "logprobs" | "sampledLogprobs" | "entropies">>;

/**
 * Expects the same tokens of two ways, and the same values as far as both have them, but where rounding decides. A completion that goes on with another token
 * there is compared up to it.
 * @param got completions of each prompt, from number options.firstCompletion on
 */
export function expectSameDraws(
  model: Qwen2VL,
  prompts: readonly Prompt[],
  options: RolloutOptions,
  got: readonly (readonly Drawn[])[],
  expected: readonly (readonly Drawn[])[],
): void {
  let tokens = 0;
  let atEdges = 0;
  expect(got.map((group) => group.length)).toEqual(expected.map((group) => group.length));
  for (const [q, prompt] of prompts.entries()) {
    for (const [g, own] of (got[q] as readonly Drawn[]).entries()) {
      const other = expected[q]?.[g] as Drawn;
      const index = (options.firstCompletion ?? 0) + g;
      const requireEdge = (t: number, what: string) => {
        const distance = distanceAt(model, prompt, options, { index, before: Array.from(other.ids.slice(0, t)) });
        expect(
          distance,
          `${what} of completion ${index} of ${prompt.sample.id} at ${t}: distance from an edge`,
        ).toBeLessThan(ROUNDING);
        atEdges++;
      };
      const end = other.ids.findIndex((id, t) => id !== own.ids[t]);
      const same = end === -1 ? other.ids.length : end;
      for (let t = 0; t < same; t++) {
        tokens++;
        for (const name of ["logprobs", "entropies"] as const)
          expect(difference(own, other, name, t), `${name} ${q} ${g} ${t}`).toBeLessThan(ROUNDING);
        if (difference(own, other, "sampledLogprobs", t) >= ROUNDING) requireEdge(t, "sampledLogprobs");
      }
      if (end === -1) expect(own.ids).toHaveLength(other.ids.length);
      else requireEdge(end, "ids");
    }
  }
  expect(atEdges).toBeLessThanOrEqual(Math.ceil(MOST_AT_EDGES * tokens));
}

function difference(a: Drawn, b: Drawn, name: "logprobs" | "sampledLogprobs" | "entropies", t: number): number {
  return a[name] === undefined || b[name] === undefined ? 0 : Math.abs((a[name][t] as number) - (b[name][t] as number));
}

function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}
