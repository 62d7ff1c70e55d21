/** Continuous batching against the plain waves, and what only it has: partial admission, limits, independence of the batch. */

import { afterAll, describe, expect, test } from "vitest";
import { ConfigError } from "../../src/errors.ts";
import { randomInt } from "../../src/random.ts";
import { type RolloutOptions, Sampler, type SamplerOptions } from "../../src/rollout/sampler.ts";
import { setNumThreads } from "../../src/torch/cuda.ts";
import { liveTensors } from "../../src/torch/scope.ts";
import type { Prompt, RolloutGroup } from "../../src/types.ts";
import { type Drawn, expectSameDraws } from "./edges.ts";
import { decoder, TOKENS, tinyModel, tinyPrompt } from "./support.ts";

const model = tinyModel();
afterAll(() => model[Symbol.dispose]());

const base: RolloutOptions = { groupSize: 3, maxNewTokens: 12, temperature: 1, topK: 0, topP: 1, seed: 5, step: 1 };
const prompts = [
  tinyPrompt("a", 7),
  tinyPrompt("b", 13, true),
  tinyPrompt("c", 1),
  tinyPrompt("d", 30),
  tinyPrompt("e", 30, true),
];

function sample(
  given: readonly Prompt[],
  options: Partial<RolloutOptions> = {},
  sampler: Partial<Omit<SamplerOptions, "config">> & Partial<SamplerOptions["config"]> = {},
): { groups: RolloutGroup[]; stats: Sampler["stats"] } {
  const { maxConcurrent = 256, deterministic = false, ...rest } = sampler;
  const config = { maxConcurrent, deterministic };
  using own = new Sampler({ model, tokenizer: decoder, config, ...rest });
  const groups = own.rolloutGroups(given, { ...base, ...options });
  return { groups, stats: own.stats };
}
const idsOf = (groups: readonly RolloutGroup[]) => groups.map((g) => g.completions.map((c) => Array.from(c.ids)));
const completionsOf = (groups: readonly RolloutGroup[]) => groups.map(({ completions }) => completions);
const same = (
  given: readonly Prompt[],
  options: Partial<RolloutOptions>,
  got: readonly (readonly Drawn[])[],
  expected: readonly (readonly Drawn[])[],
  of = model,
) => expectSameDraws(of, given, { ...base, ...options }, got, expected);
const bitsOf = ({ completions }: RolloutGroup) =>
  completions.map(({ ids, logprobs, sampledLogprobs, entropies }) => [ids, logprobs, sampledLogprobs, entropies]);

describe("the plain path's completions", () => {
  const cases: Partial<RolloutOptions>[] = [
    {},
    { temperature: 0.7, topK: 9, topP: 0.8 },
    { temperature: 3, topP: 0.9 },
    { greedy: true, groupSize: 1 },
    { groupSize: 11 },
  ];
  test.each(cases)("%j", (options) => {
    const plain = sample(prompts, options, { attention: "plain" }).groups;
    for (const maxConcurrent of [256, 7, 4, 1]) {
      for (const attention of ["fused", "per-sequence"] as const) {
        const { groups } = sample(prompts, options, { attention, maxConcurrent });
        same(prompts, options, completionsOf(groups), completionsOf(plain));
        for (const { ids, finish, logprobs, sampledLogprobs, entropies } of completionsOf(groups).flat()) {
          expect(finish).toBe(TOKENS.stops.includes(ids.at(-1) as number) ? "stop" : "length");
          for (const values of [logprobs, sampledLogprobs, entropies]) expect(values).toHaveLength(ids.length);
        }
      }
    }
  });
});

describe("limits of single completions", () => {
  const limitOf = (prompt: number, completion: number) => 1 + randomInt(12, "limit", prompt, completion);

  test.each(["fused", "plain"] as const)("cut what is sampled, and nothing else (%s)", (attention) => {
    const whole = sample(prompts, {}, { attention }).groups;
    const { groups, stats } = sample(prompts, { limitOf }, { attention, maxConcurrent: 5 });
    const cut = whole.map(({ completions }, q) =>
      completions.map(({ ids }, g) => ({ ids: ids.slice(0, limitOf(q, g)) })),
    );
    same(prompts, {}, completionsOf(groups), cut);
    for (const [q, { completions }] of groups.entries())
      for (const [g, { ids, finish }] of completions.entries())
        expect(finish === "stop" || ids.length === limitOf(q, g)).toBe(true);
    expect(stats.tokens).toBe(idsOf(groups).flat(2).length);
  });

  test.each(["fused", "plain"] as const)("are one token at least (%s)", (attention) => {
    const before = liveTensors();
    expect(() => sample(prompts, { limitOf: () => 0 }, { attention })).toThrow(/one token or more, not at most 0/);
    expect(liveTensors()).toEqual(before);
    const { groups, stats } = sample(prompts, { limitOf: () => 1 }, { attention });
    expect(
      idsOf(groups)
        .flat()
        .every((ids) => ids.length === 1),
    ).toBe(true);
    expect(stats.tokens).toBe(15);
  });

  test("long completions take turns, and are none the worse for it", () => {
    using endless = tinyModel({ stops: [1000] }); // an id that it has not
    const long = (prompt: number, completion: number) => 10 + randomInt(90, "long", prompt, completion);
    const options = { maxNewTokens: 100, limitOf: long };
    const whole = sample(prompts, options, { model: endless, attention: "plain" }).groups;
    for (const maxConcurrent of [6, 4, 2]) {
      const { groups, stats } = sample(prompts, options, { model: endless, maxConcurrent });
      same(prompts, options, completionsOf(groups), completionsOf(whole), endless);
      expect(stats.rows).toBe(maxConcurrent);
    }
    // begun together, completions end together: rows are hardly ever idle, however the lengths fall
    expect(sample(prompts, options, { model: endless, maxConcurrent: 4 }).stats.occupancy).toBeGreaterThan(0.9);
  });

  test("a slot is filled again as soon as its completion has ended", () => {
    const given = Array.from({ length: 12 }, (_, i) => tinyPrompt(`p${i}`, 3 + i));
    const { groups, stats } = sample(given, { limitOf, groupSize: 4 }, { maxConcurrent: 8 });
    const lengths = groups.flatMap(({ completions }) => completions.map(({ ids }) => ids.length));
    const drawnInSteps = lengths.reduce((sum, length) => sum + length - 1, 0);
    // slots do nothing only in the end, while the last completions run out
    expect(stats.steps).toBeLessThan(drawnInSteps / 8 + 12);
    expect(stats.occupancy).toBe(drawnInSteps / stats.steps / 8);
  });
});

describe("deterministic", () => {
  test("a completion has the same bits alone and among others, in any order", () => {
    const options = { deterministic: true, maxConcurrent: 9 };
    const together = sample(prompts, {}, options).groups;
    const reversed = sample([...prompts].reverse(), {}, options).groups.reverse();
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = sample([prompt], {}, options).groups;
      expect(bitsOf(together[i] as RolloutGroup)).toEqual(bitsOf(alone as RolloutGroup));
      expect(bitsOf(reversed[i] as RolloutGroup)).toEqual(bitsOf(alone as RolloutGroup));
    }
    const [one] = sample(prompts.slice(3, 4), { groupSize: 1, firstCompletion: 2 }, options).groups;
    expect(bitsOf(one as RolloutGroup)[0]).toEqual(bitsOf(together[3] as RolloutGroup)[2]);
  });

  test("also where several threads share out the rows of a product", () => {
    setNumThreads(2);
    try {
      // of seven rows a thread would get four and the other three, which it would sum otherwise
      const options = { deterministic: true, maxConcurrent: 7 };
      const together = sample(prompts, {}, options).groups;
      for (const [i, prompt] of prompts.entries()) {
        const [alone] = sample([prompt], {}, options).groups;
        expect(bitsOf(alone as RolloutGroup)).toEqual(bitsOf(together[i] as RolloutGroup));
      }
    } finally {
      setNumThreads(1);
    }
  });

  test("has as many rows as it may have, however few completions there are", () => {
    expect(sample(prompts.slice(0, 1), {}, { deterministic: true, maxConcurrent: 20 }).stats.rows).toBe(24); // of 8
    expect(sample(prompts.slice(0, 1), {}, { maxConcurrent: 20 }).stats.rows).toBe(3);
  });

  test("cannot be had by waves", () => {
    expect(() => sample(prompts, {}, { deterministic: true, attention: "plain" })).toThrow(ConfigError);
  });
});
