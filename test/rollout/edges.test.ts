/** That edges are told from what is none, so that the comparisons which count on them are not blind. */

import { afterAll, expect, test } from "vitest";
import { type RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import type { RolloutGroup } from "../../src/types.ts";
import { distanceAt, edgeDistance, expectSameDraws } from "./edges.ts";
import { decoder, FORBIDDEN, passLogprobs, tinyModel, tinyPrompt } from "./support.ts";

const plain = { temperature: 1, topK: 0, topP: 1 };
const logits = [0.2, 0.5, 0.3].map(Math.log); // borders at 0.2, 0.7 and 1

test.each([
  ["between two borders", plain, 0.4, 0.2],
  ["at a border", plain, 0.7, 0],
  ["behind the last token", plain, 0.999, 0.001],
  ["top-k of the two likeliest, 0.5 and 0.3", { ...plain, topK: 2 }, 0.3, 0.325], // 0.5 / 0.8 - 0.3
  ["a nucleus that the two likeliest just fill", { ...plain, topP: 0.8 }, 0.3, 0],
  ["a nucleus of two with room on either side", { ...plain, topP: 0.65 }, 0.3, 0.15],
  ["the nucleus among the two likeliest", { ...plain, topK: 2, topP: 0.6 }, 0.3, 0.025], // the first has 0.625 of it
  ["greedy", { ...plain, greedy: true }, 0.7, Math.log(0.5 / 0.3)],
  ["a temperature", { ...plain, temperature: 0.5, greedy: true }, 0, 2 * Math.log(0.5 / 0.3)],
] as const)("%s", (_, options, u, distance) => {
  for (const exact of [true, false]) expect(edgeDistance(logits, options, u, exact)).toBeCloseTo(distance, 9);
});

test.each([
  ["top-k", { ...plain, topK: 1 }],
  ["the nucleus", { ...plain, topP: 0.1 }],
  ["greedy", { ...plain, greedy: true }],
])("%s: nearly equal logits are an edge, equal ones where the draws may have had others", (_, options) => {
  const distance = (second: number, exact: boolean) => edgeDistance([1, second, 0], options, 0.25, exact);
  expect(distance(1, true)).toBeGreaterThan(0.1);
  expect(distance(1, false)).toBe(0);
  for (const exact of [true, false]) expect(distance(1 - 1e-7, exact)).toBeCloseTo(1e-7, 12);
});

const model = tinyModel();
afterAll(() => model[Symbol.dispose]());
const prompt = tinyPrompt("a", 7);
const base: RolloutOptions = { ...plain, groupSize: 3, maxNewTokens: 1, seed: 5, step: 1 };
function drawn(options: RolloutOptions) {
  using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent: 8 } });
  return sampler.rolloutGroups([prompt], options).map(({ completions }) => completions);
}

test("what differs at the edge of a nucleus is let pass, what differs elsewhere is not", () => {
  const allowed = Array.from({ length: 96 }, (_, id) => id).filter((id) => !FORBIDDEN.includes(id));
  const candidates = allowed.map((id) => ({ ids: Int32Array.of(id) }));
  const weights = passLogprobs(model, [{ prompt, completions: candidates } as unknown as RolloutGroup]).map(Math.exp);
  const total = weights.reduce((a, b) => a + b, 0);
  const [first, second, third] = weights.sort((a, b) => b - a).map((weight) => weight / total) as [
    number,
    number,
    number,
  ];
  const edge = first + second;
  expect(third).toBeGreaterThan(0.001);
  const [inside, outside] = [drawn({ ...base, topP: edge + 1e-5 }), drawn({ ...base, topP: edge - 1e-5 })];
  const values = (some: ReturnType<typeof drawn>) => some.flat().map(({ sampledLogprobs }) => sampledLogprobs[0]);
  expect(values(inside)).not.toEqual(values(outside));
  expect(() => expectSameDraws(model, [prompt], { ...base, topP: edge }, inside, outside)).toThrow(/expected 3 to be/); // too many
  const one = (some: ReturnType<typeof drawn>) => [some[0]?.slice(0, 1) ?? []];
  expectSameDraws(model, [prompt], { ...base, topP: edge }, one(inside), one(outside));
  const wrong = { ...base, topP: edge - 0.01 };
  expect(() => expectSameDraws(model, [prompt], wrong, one(inside), one(outside))).toThrow(/distance from an edge/);
});

test("another token than the one that was drawn is not let pass", () => {
  const [whole] = drawn(base);
  const other = (whole ?? []).map(({ ids }) => ({ ids: ids.map((id) => (id + 1) % 80) }));
  expect(distanceAt(model, prompt, base, { index: 0, before: [] })).toBeGreaterThan(1e-4);
  expect(() => expectSameDraws(model, [prompt], base, [other], [whole ?? []])).toThrow(/ids of completion 0 of a at 0/);
});
