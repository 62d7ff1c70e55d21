import fc from "fast-check";
import { expect, test } from "vitest";
import { planWaves, type WaveLimits } from "../../src/rollout/wave-scheduler.ts";

const unlimited: WaveLimits = {
  groupSize: 8,
  maxConcurrent: 256,
  maxBytes: Number.POSITIVE_INFINITY,
  bytesOf: () => 0,
};

test("everything fits into one wave, longest prompt first", () => {
  const waves = planWaves([5, 9, 7], unlimited);
  expect(waves).toEqual([{ questions: [1, 2, 0], rounds: [{ first: 0, count: 8 }] }]);
});

test("nine questions at most eight at a time make five and four", () => {
  const waves = planWaves(Array(9).fill(3), { ...unlimited, maxConcurrent: 64 });
  expect(waves.map((wave) => wave.questions.length)).toEqual([5, 4]);
});

test("a group larger than the limit takes rounds over one prefill", () => {
  const waves = planWaves([4, 4], { ...unlimited, groupSize: 10, maxConcurrent: 4 });
  expect(waves.map((wave) => wave.questions)).toEqual([[0], [1]]);
  expect(waves[0]?.rounds).toEqual([
    { first: 0, count: 4 },
    { first: 4, count: 4 },
    { first: 8, count: 2 },
  ]);
});

test("memory splits further, but a single question always runs", () => {
  const limits = {
    ...unlimited,
    maxBytes: 100,
    bytesOf: (shape: { questions: number; promptSlots: number }) => shape.questions * shape.promptSlots,
  };
  expect(planWaves([500, 30, 30, 30, 30], limits).map((wave) => wave.questions)).toEqual([[0], [1, 2, 3], [4]]);
});

test("every question is in exactly one wave and its rounds cover its group", () => {
  const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 0, maxLength: 30 });
  fc.assert(
    fc.property(
      lengths,
      fc.integer({ min: 1, max: 12 }),
      fc.integer({ min: 1, max: 40 }),
      (prompts, groupSize, limit) => {
        const waves = planWaves(prompts, {
          groupSize,
          maxConcurrent: limit,
          maxBytes: 90,
          bytesOf: (shape) => shape.questions * shape.promptSlots,
        });
        const questions = waves.flatMap((wave) => wave.questions).sort((a, b) => a - b);
        expect(questions).toEqual([...prompts.keys()]);
        for (const { questions: own, rounds } of waves) {
          expect(rounds.reduce((sum, round) => sum + round.count, 0)).toBe(groupSize);
          for (const { count } of rounds) expect(count * own.length).toBeLessThanOrEqual(Math.max(limit, 1));
          const slots = Math.max(...own.map((q) => prompts[q] as number));
          expect(own.length === 1 || own.length * slots <= 90).toBe(true);
        }
      },
    ),
  );
});
