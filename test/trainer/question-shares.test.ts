/** Which questions are whose: the same at every rank, even in number, balanced by tokens, and dealt out one by one where all are alike. */

import { expect, test } from "vitest";
import { randomInt } from "../../src/random.ts";
import { balancedOwners, imbalance, measureQuestions, QuestionShares } from "../../src/trainer/question-shares.ts";
import type { Sample } from "../../src/types.ts";
import { fakeSample } from "./fakes.ts";

const dealt = (count: number, world: number) => Array.from({ length: count }, (_, place) => place % world);
const tokensOf = (sizes: readonly number[], owners: readonly number[], world: number) =>
  Array.from({ length: world }, (_, rank) =>
    sizes.reduce((sum, size, place) => (owners[place] === rank ? sum + size : sum), 0),
  );

test("equal questions are dealt out one by one, also those of which nothing is known", () => {
  for (const world of [1, 2, 3, 4, 8]) {
    for (const count of [0, 1, 2, 3, 7, 8, 9, 64]) {
      expect(balancedOwners(Array(count).fill(954), world)).toEqual(dealt(count, world));
      expect(balancedOwners(Array(count).fill(0), world)).toEqual(dealt(count, world));
    }
  }
});

test.each([
  ["the longest beside the shortest", [9, 8, 2, 1], 2, [0, 1, 1, 0]],
  ["in whatever place they are", [1, 8, 9, 2], 2, [0, 1, 0, 1]],
  ["one that is longer than all others together does not get fewer", [100, 1, 1, 1], 2, [0, 1, 0, 1]],
] as const)("%s", (_name, sizes, world, owners) => {
  expect(balancedOwners(sizes, world)).toEqual([...owners]);
});

test("numbers of questions are those of dealing out where they come out even, never above; the tokens are spread better", () => {
  let [better, worse] = [0, 0];
  for (let trial = 0; trial < 200; trial++) {
    const world = 2 + randomInt(7, "world", trial);
    const count = 1 + randomInt(40, "count", trial);
    const sizes = Array.from({ length: count }, (_, i) => 1 + randomInt(3000, "size", trial, i));
    const owners = balancedOwners(sizes, world);
    const counts = tokensOf(Array(count).fill(1), owners, world);
    expect(Math.max(...counts)).toBe(Math.ceil(count / world));
    if (count % world === 0) expect(Math.min(...counts)).toBe(count / world);
    if (count >= world) expect(Math.min(...counts)).toBeGreaterThan(0);
    const before = imbalance(tokensOf(sizes, dealt(count, world), world));
    const after = imbalance(tokensOf(sizes, owners, world));
    if (after < before) better++;
    if (after > before) worse++;
  }
  expect(better).toBeGreaterThan(150);
  expect(worse).toBe(0);
});

test("imbalance: the most over the mean", () => {
  expect(imbalance([3, 3, 3])).toBe(1);
  expect(imbalance([6, 0, 3])).toBe(2);
  expect(imbalance([0, 0])).toBe(1);
});

const STEPS = 5;
const stepSamples = (step: number, count = 7) =>
  Array.from({ length: count }, (_, i) =>
    fakeSample(`${step}/${i}`, { fields: { tokens: 1 + randomInt(99, step, i) } }),
  );
const tokens = ({ fields }: Sample) => fields.tokens as number;

/** The shares of one rank, beside others that measure what is theirs; counts what it measures itself and how often the ranks meet. */
function sharesOf(rank: number, world: number) {
  const log = { measured: [] as string[], meetings: 0 };
  let lists: Sample[][] = [];
  const gather = <T>(own: T): T[] => {
    log.meetings++;
    const all = Array.from({ length: world }, (_, from) =>
      lists.map((list) => list.filter((_, place) => place % world === from).map(tokens)),
    );
    expect(own).toEqual(all[rank]);
    return all as T[];
  };
  const shares = new QuestionShares({
    ranks: { rank, world, gather },
    steps: STEPS,
    samplesOf: (step) => stepSamples(step),
    measure: async (sample) => {
      log.measured.push(sample.id);
      return tokens(sample);
    },
  });
  /** What the ranks meet about next. */
  const about = (...next: Sample[][]) => {
    lists = next;
  };
  return { shares, log, about };
}

test("the ranks' shares make up each step, each question is measured once by one rank, and a step ahead", async () => {
  const world = 3;
  const parts = await Promise.all(
    [0, 1, 2].map(async (rank) => {
      const { shares, log, about } = sharesOf(rank, world);
      about(stepSamples(0), stepSamples(1));
      const first = await shares.ofSteps(0, 1);
      expect(await shares.ofSteps(0, 1), "known: nobody is asked again").toEqual(first);
      expect(log.meetings).toBe(1);
      expect(
        log.measured.some((id) => id.startsWith("2/")),
        "measured ahead",
      ).toBe(true);
      about(stepSamples(2));
      const [again, next] = await shares.ofSteps(1, 2);
      expect(again).toEqual(first[1]);
      about(stepSamples(3), stepSamples(4));
      const [, third, fourth] = await shares.ofSteps(2, 4);
      expect(log.meetings).toBe(3);
      return { steps: [...first, next, third, fourth], measured: log.measured };
    }),
  );
  for (let step = 0; step < STEPS; step++) {
    const held = parts.map(({ steps }) => steps[step] ?? []);
    const places = held.flat().map(({ place }) => place);
    expect([...places].sort((a, b) => a - b)).toEqual(dealt(7, 7));
    for (const share of held) {
      expect(share.map(({ place }) => place)).toEqual(share.map(({ place }) => place).sort((a, b) => a - b));
      for (const { place, sample } of share) expect(sample.id).toBe(`${step}/${place}`);
    }
  }
  const measured = parts.flatMap((part) => part.measured);
  expect(new Set(measured).size).toBe(measured.length);
  expect(measured).toHaveLength(7 * STEPS);
});

test("another list is shared out by the same rule", async () => {
  const { shares, about } = sharesOf(1, 2);
  const others = [9, 8, 2, 1].map((size, i) => fakeSample(`other ${i}`, { fields: { tokens: size } }));
  about(others);
  expect((await shares.of(others)).map(({ place }) => place)).toEqual([1, 2]);
});

test("a run alone has all questions and measures none", async () => {
  const { shares, log } = sharesOf(0, 1);
  const [step] = await shares.ofSteps(3, 4);
  expect(step?.map(({ place }) => place)).toEqual(dealt(7, 7));
  expect(await shares.of(stepSamples(9, 3))).toHaveLength(3);
  expect(log).toEqual({ measured: [], meetings: 0 });
});

test("SFT counts the response too, GRPO and a question without a length do not", async () => {
  const parts = {
    loader: { length: async ({ id }: Sample) => (id === "bad" ? 0 : 100) },
    processor: { tokenizer: { encode: (text: string) => new Int32Array(text.length) } },
  };
  const sample = fakeSample("q", { response: "12345" });
  expect(await measureQuestions("grpo", parts)(sample)).toBe(100);
  expect(await measureQuestions("sft", parts)(sample)).toBe(105);
  expect(await measureQuestions("sft", parts)({ ...sample, id: "bad" })).toBe(0);
});
