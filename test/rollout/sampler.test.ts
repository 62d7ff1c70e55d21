import { afterAll, describe, expect, test } from "vitest";
import { ConfigError, NumericsError } from "../../src/errors.ts";
import { packGroups } from "../../src/model/packed.ts";
import { drawUniforms } from "../../src/rollout/draws.ts";
import { forbiddenIds, type RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import { fill_ } from "../../src/torch/ops.ts";
import { liveTensors } from "../../src/torch/scope.ts";
import type { Completion, Prompt, RolloutGroup } from "../../src/types.ts";
import { type Drawn, expectSameDraws } from "./edges.ts";
import { decoder, FORBIDDEN, greedyReference, passLogprobs, TOKENS, tinyModel, tinyPrompt } from "./support.ts";

const model = tinyModel();
afterAll(() => model[Symbol.dispose]());

const base: RolloutOptions = {
  groupSize: 4,
  maxNewTokens: 12,
  temperature: 1,
  topK: 0,
  topP: 1,
  seed: 11,
  step: 2,
};
const prompts = [
  tinyPrompt("a", 7),
  tinyPrompt("b", 13, true),
  tinyPrompt("c", 1),
  tinyPrompt("d", 10, true),
  tinyPrompt("e", 21),
];
const idsOf = (groups: readonly RolloutGroup[]) => groups.map((g) => g.completions.map((c) => Array.from(c.ids)));
const drawn = (groups: readonly RolloutGroup[]): Drawn[][] => groups.map(({ completions }) => completions);
const same = (given: readonly Prompt[], got: readonly (readonly Drawn[])[], expected: readonly (readonly Drawn[])[]) =>
  expectSameDraws(model, given, base, got, expected);

describe.each(["fused", "plain"] as const)("%s", (attention) => {
  const samplerOf = (maxConcurrent = 256, prefillTokens = 8192, policy = model) =>
    new Sampler({ model: policy, tokenizer: decoder, config: { maxConcurrent }, prefillTokens, attention });

  test("recorded log-probabilities equal one packed pass without a cache", () => {
    const groups = samplerOf().rolloutGroups(prompts, base);
    const recorded = groups.flatMap((group) => group.completions.flatMap((c) => Array.from(c.logprobs)));
    const expected = passLogprobs(model, groups);
    expect(recorded).toHaveLength(expected.length);
    for (const [i, value] of expected.entries()) expect(Math.abs((recorded[i] as number) - value)).toBeLessThan(1e-5);
    // The comparison means something: tokens differ in probability.
    expect(Math.max(...expected) - Math.min(...expected)).toBeGreaterThan(2);
  });

  test("ignoreEos goes on past end tokens, with the same draws up to there", () => {
    const usual = samplerOf().rolloutGroups(prompts, { ...base, maxNewTokens: 40 });
    using sampler = new Sampler({
      model,
      tokenizer: decoder,
      config: { maxConcurrent: 256, ignoreEos: true },
      attention,
    });
    const pairs = sampler
      .rolloutGroups(prompts, { ...base, maxNewTokens: 40 })
      .flatMap((group, q) =>
        group.completions.map((long, g) => ({ long, short: usual[q]?.completions[g] as Completion })),
      );
    for (const { long } of pairs) {
      expect(long).toMatchObject({ finish: "length", ids: { length: 40 } });
    }
    const cut = pairs.map(({ long, short }) => ({ ids: long.ids.slice(0, short.ids.length) }));
    const grouped = (some: readonly Drawn[]) => prompts.map((_, q) => some.slice(4 * q, 4 * q + 4));
    same(prompts, grouped(cut), grouped(pairs.map(({ short }) => ({ ids: short.ids }))));
    expect(pairs.filter(({ short }) => short.finish === "stop").length).toBeGreaterThan(0);
  });

  test("at temperature 1 the sampled distribution is the policy without the forbidden ids", () => {
    const groups = samplerOf().rolloutGroups(prompts.slice(0, 2), base);
    const { prompt, completions } = groups[1] as RolloutGroup;
    const first = Array.from({ length: 96 }, (_, id) => id).filter((id) => !FORBIDDEN.includes(id));
    const candidates = first.map((id) => ({ ids: Int32Array.of(id) }));
    const allowed = passLogprobs(model, [{ prompt, completions: candidates } as unknown as RolloutGroup])
      .map(Math.exp)
      .reduce((a, b) => a + b);
    expect(allowed).toBeLessThan(0.999);
    for (const { sampledLogprobs, logprobs } of completions) {
      expect(sampledLogprobs[0]).toBeCloseTo((logprobs[0] as number) - Math.log(allowed), 5);
    }
  });

  test("greedy equals the argmax of full passes, token by token", () => {
    const few = prompts.slice(0, 4);
    const options = { ...base, groupSize: 1, maxNewTokens: 6, greedy: true };
    const completions = samplerOf()
      .rolloutGroups(few, options)
      .map((group) => group.completions[0]);
    for (const [i, prompt] of few.entries()) {
      const { ids, margin } = greedyReference(model, prompt, 6);
      expect(margin).toBeGreaterThan(1e-4);
      expect(Array.from(completions[i]?.ids ?? [])).toEqual(ids);
      expect(completions[i]?.sampledLogprobs.every((x) => x === 0)).toBe(true);
    }
  });

  test("the same completions whatever the waves, the packing, the rounds and the order of the prompts", () => {
    const whole = drawn(samplerOf().rolloutGroups(prompts, base));
    expect(new Set(whole.flat().map(({ ids }) => String(ids))).size).toBeGreaterThan(15); // they differ from one another
    for (const [maxConcurrent, prefillTokens] of [
      [4, 8192],
      [8, 1],
      [12, 40],
      [3, 8192],
      [1, 1],
    ] as const) {
      same(prompts, drawn(samplerOf(maxConcurrent, prefillTokens).rolloutGroups(prompts, base)), whole);
    }
    same(prompts, drawn(samplerOf().rolloutGroups([...prompts].reverse(), base)).reverse(), whole);
    same(prompts.slice(1, 2), drawn(samplerOf().rolloutGroups(prompts.slice(1, 2), base)), whole.slice(1, 2));
  });

  test("a group can be continued, and a smaller one is its beginning", () => {
    const whole = drawn(samplerOf().rolloutGroups(prompts, base));
    const first = drawn(samplerOf().rolloutGroups(prompts, { ...base, groupSize: 1 }));
    const rest = drawn(samplerOf().rolloutGroups(prompts, { ...base, groupSize: 3, firstCompletion: 1 }));
    const both = first.map((group, i) => [...group, ...(rest[i] as Drawn[])]);
    same(prompts, both, whole);
  });

  test("seed, step and sample id change the draws", () => {
    const one = (options: Partial<RolloutOptions>, id = "a") =>
      idsOf(
        samplerOf().rolloutGroups([{ ...tinyPrompt("a", 7), sample: { ...tinyPrompt(id, 7).sample } }], {
          ...base,
          ...options,
        }),
      );
    const original = one({});
    expect(one({})).toEqual(original);
    for (const other of [one({ seed: 12 }), one({ step: 3 }), one({}, "z")]) expect(other).not.toEqual(original);
  });

  test("a prompt that is given twice gets two groups: the second goes on where the first ended, in whatever waves they are", () => {
    const [a, b] = [prompts[0], prompts[1]] as [(typeof prompts)[0], (typeof prompts)[0]];
    const double = drawn(samplerOf().rolloutGroups([a], { ...base, groupSize: 8 }));
    const single = drawn(samplerOf().rolloutGroups([b], base));
    for (const maxConcurrent of [256, 4, 3]) {
      const [first, other, second] = drawn(samplerOf(maxConcurrent).rolloutGroups([a, b, a], base));
      same([a], [[...(first as Drawn[]), ...(second as Drawn[])]], double);
      same([b], [other as Drawn[]], single);
    }
  });

  test("a longer limit continues the same completions", () => {
    const short = drawn(samplerOf().rolloutGroups(prompts, { ...base, maxNewTokens: 5 }));
    const long = drawn(samplerOf().rolloutGroups(prompts, { ...base, maxNewTokens: 9 }));
    const cut = long.map((group) => group.map(({ ids }) => ({ ids: ids.slice(0, 5) })));
    same(prompts, cut, short);
  });

  test("forbidden ids never appear, also at a high temperature", () => {
    const groups = samplerOf().rolloutGroups(prompts, { ...base, groupSize: 32, maxNewTokens: 24, temperature: 5 });
    const seen = new Set(idsOf(groups).flat(2));
    for (const id of FORBIDDEN) expect(seen.has(id)).toBe(false);
    expect(seen.size).toBeGreaterThan(85);
  });

  test("each of the stop ids ends a completion and is part of it; the rest reaches the limit", () => {
    const groups = samplerOf().rolloutGroups(prompts, { ...base, groupSize: 32, maxNewTokens: 24, temperature: 3 });
    const completions = groups.flatMap((group) => group.completions);
    for (const stop of TOKENS.stops) expect(completions.some((c) => c.ids.at(-1) === stop)).toBe(true);
    expect(completions.some((c) => c.finish === "length")).toBe(true);
    for (const { ids, finish, logprobs, sampledLogprobs, text } of completions) {
      const stops = ids.findIndex((id) => TOKENS.stops.includes(id));
      expect(finish).toBe(stops >= 0 ? "stop" : "length");
      expect(ids).toHaveLength(stops >= 0 ? stops + 1 : 24);
      expect([logprobs.length, sampledLogprobs.length]).toEqual([ids.length, ids.length]);
      expect(text).toBe(Array.from(ids, (id) => `t${id}`).join(" "));
      for (const [i, p] of sampledLogprobs.entries()) {
        expect(p).toBeLessThanOrEqual(0);
        expect(logprobs[i]).toBeLessThanOrEqual(0);
      }
    }
  });

  test("the loop ends early when everything has stopped", () => {
    const everything = tinyModel({
      stops: Array.from({ length: 96 }, (_, i) => i).filter((id) => !FORBIDDEN.includes(id)),
    });
    const sampler = samplerOf(256, 8192, everything);
    const groups = sampler.rolloutGroups(prompts, { ...base, maxNewTokens: 50 });
    everything[Symbol.dispose]();
    expect(
      idsOf(groups)
        .flat()
        .every((ids) => ids.length === 1),
    ).toBe(true);
    expect(sampler.stats.steps).toBe(0); // a first token needs none
    expect(sampler.stats.tokens).toBe(20);
  });

  test("top-k and top-p restrict what is drawn", () => {
    const top = samplerOf().rolloutGroups(prompts, { ...base, topK: 1 });
    const greedy = samplerOf().rolloutGroups(prompts, { ...base, greedy: true });
    expect(idsOf(top)).toEqual(idsOf(greedy));
    const nucleus = samplerOf().rolloutGroups(prompts, { ...base, topP: 1e-6 });
    expect(idsOf(nucleus)).toEqual(idsOf(greedy));
    const recorded = top.flatMap((group) => group.completions.flatMap((c) => Array.from(c.logprobs)));
    passLogprobs(model, top).forEach((value, i) => {
      expect(Math.abs((recorded[i] as number) - value)).toBeLessThan(1e-5);
    });
  });

  test("one token, one prompt, one completion", () => {
    const [group] = samplerOf().rolloutGroups(prompts.slice(2, 3), { ...base, groupSize: 1, maxNewTokens: 1 });
    expect(group?.completions).toHaveLength(1);
    expect(group?.completions[0]?.ids).toHaveLength(1);
    expect(samplerOf().rolloutGroups([], base)).toEqual([]);
  });

  test("bfloat16 on the CPU stays close to its own packed pass", () => {
    const half = tinyModel({ dtype: "bfloat16" });
    const groups = samplerOf(256, 8192, half).rolloutGroups(prompts, base);
    const recorded = groups.flatMap((group) => group.completions.flatMap((c) => Array.from(c.logprobs)));
    const gaps = passLogprobs(half, groups).map((value, i) => Math.abs(value - (recorded[i] as number)));
    half[Symbol.dispose]();
    expect(gaps.reduce((a, b) => a + b) / gaps.length).toBeLessThan(0.05);
  });

  test("a call leaves no tensor behind, counts its work and reports progress", () => {
    const sampler = samplerOf(8);
    const before = liveTensors();
    const progress: [number, number][] = [];
    const groups = sampler.rolloutGroups(prompts, {
      ...base,
      onProgress: (done, total) => progress.push([done, total]),
    });
    expect(liveTensors()).toEqual(before);
    expect(progress.at(-1)).toEqual([20, 20]);
    for (const [i, [done, total]] of progress.entries()) {
      expect(done).toBeGreaterThan(progress[i - 1]?.[0] ?? 0);
      expect(total).toBe(20);
    }
    const { stats } = sampler;
    expect(stats.tokens).toBe(idsOf(groups).flat(2).length);
    expect(stats.promptTokens).toBe(packGroups(groups.map(({ prompt }) => ({ prompt, completions: [] }))).promptTokens);
    expect(stats.rows).toBe(8);
    expect(stats.occupancy).toBeGreaterThan(0.3);
    expect(stats.occupancy).toBeLessThanOrEqual(1);
    for (const time of [stats.prefillS, stats.visionS, stats.decodeS]) expect(time).toBeGreaterThan(0);
    expect(stats.visionS).toBeLessThan(stats.prefillS);
    expect(stats.captureS).toBe(0);
    // prompts once, own tokens; 1 head x 16 x 2 layers x (K, V) x 4 bytes
    const lengths = prompts.map(({ inputIds }) => inputIds.length);
    const waves = 2 * Math.max(...lengths) + 8 * 12; // two prompts and their completions at a time
    const slots = lengths.reduce((a, b) => a + b) + 20 * 12; // all of them, of which eight completions get a row
    expect(stats.kvBytes).toBe((attention === "plain" ? waves : slots) * 16 * 2 * 2 * 4);
  });

  test("a failure inside leaves no tensor behind", () => {
    const before = liveTensors();
    const failing = { ...prompts[1]!, images: [] };
    expect(() => samplerOf().rolloutGroups([failing], base)).toThrow(/placeholder/);
    expect(() => samplerOf().rolloutGroups(prompts, { ...base, temperature: 0 })).toThrow(/temperature/);
    expect(liveTensors()).toEqual(before);
  });

  test("a model that gives NaN is an error that names the sample", () => {
    const broken = tinyModel();
    fill_(broken.weights.text.norm, Number.NaN);
    const before = liveTensors();
    expect(() => samplerOf(256, 8192, broken).rolloutGroups(prompts, base)).toThrow(NumericsError);
    expect(() => samplerOf(256, 8192, broken).rolloutGroups(prompts, base)).toThrow(/log-probability .* is NaN/);
    expect(liveTensors()).toEqual(before);
    broken[Symbol.dispose]();
  });
});

test("an end token that is never sampled, and an id that the model has not, are the configuration's faults", () => {
  const config = { maxConcurrent: 8 };
  const tokenizer = { ...decoder, vocabSize: 95 };
  expect(() => new Sampler({ model, tokenizer, config })).toThrow(ConfigError);
  expect(() => new Sampler({ model, tokenizer, config })).toThrow(/end token 95 can never be sampled/);
  using sampler = new Sampler({ model, tokenizer: decoder, config });
  for (const id of [96, -1]) {
    const foreign = { ...tinyPrompt("a", 3), inputIds: Int32Array.of(1, id, 2) };
    expect(() => sampler.rolloutGroups([foreign], base)).toThrow(ConfigError);
    expect(() => sampler.rolloutGroups([foreign], base)).toThrow(
      `token id ${id} is not in the model's vocabulary of 96`,
    );
  }
});

test("ids beyond the tokenizer's vocabulary, and the vision pad, are forbidden", () => {
  const tokenizer = { ...decoder, vocabSize: 94, encode: () => Int32Array.of(17) };
  expect(forbiddenIds(model.config, tokenizer)).toEqual([90, 91, 92, 93, 17, 94, 95]);
  expect(forbiddenIds(model.config, decoder)).toEqual(FORBIDDEN);
});

test("uniform numbers are keyed, exact in float32 and below 1", () => {
  const numbers = drawUniforms(prompts.slice(0, 2), base, [0, 0], 4);
  expect(numbers).toHaveLength(12 * 8);
  expect(numbers.every((u) => u >= 0 && u < 1 && Math.fround(u) === u)).toBe(true);
  expect(new Set(numbers).size).toBe(numbers.length);
  const second = drawUniforms(prompts.slice(1, 2), base, [2], 1);
  expect(second[3]).toBe(numbers[3 * 8 + 4 + 2]); // position 3, completion 2 of prompt b
});
