import fc from "fast-check";
import { expect, test } from "vitest";
import { ConfigError } from "../../src/errors.ts";
import { kvBytesOf, type ModelSizes, planSlots, type SlotRequest, slotBytes } from "../../src/rollout/slot-shape.ts";

const seven: ModelSizes = {
  layers: 28,
  kvHeads: 4,
  headDim: 128,
  vocabSize: 152_064,
  device: "cuda",
  dtype: "bfloat16",
};
const request = (more: Partial<SlotRequest> = {}): SlotRequest => ({
  promptLengths: Array(8).fill(931),
  groupSize: 8,
  maxNewTokens: 256,
  maxConcurrent: 256,
  fixedRows: false,
  ...more,
});
const gib = 2 ** 30;

test("all of a small batch at once: each prompt once, each completion's own tokens", () => {
  const shape = planSlots(request(), seven, 100 * gib);
  expect(shape).toEqual({ rows: 64, slots: 64, ownSlots: 256, group: 8, seats: 8, arenaTokens: 8 * 931 });
  expect(kvBytesOf(shape, seven)).toBe((8 * 931 + 64 * 256) * 57_344);
  expect(slotBytes(shape, seven)).toBe(kvBytesOf(shape, seven) + 8 * 152_064 * 2 + 64 * 152_064 * 6);
});

test("more completions than rows: up to four times as many slots, room for their prompts twice", () => {
  const many = request({ promptLengths: Array(100).fill(931), maxConcurrent: 64 });
  const shape = { rows: 64, slots: 256, ownSlots: 256, group: 8, seats: 64, arenaTokens: 64 * 931 };
  expect(planSlots(many, seven, 100 * gib)).toEqual(shape);
  expect(planSlots({ ...many, promptLengths: Array(20).fill(931) }, seven, 100 * gib)).toEqual({
    ...shape,
    ...{ slots: 160, seats: 20, arenaTokens: 20 * 931 },
  });
  // one completion a prompt: no more prompts than slots can be in use
  expect(planSlots({ ...many, groupSize: 1, maxConcurrent: 4 }, seven, 100 * gib)).toMatchObject({
    ...{ rows: 8, slots: 32, seats: 32, arenaTokens: 64 * 931 },
  });
});

test("rows are multiples of 8 on CUDA, as many as completions on the CPU", () => {
  const three = request({ promptLengths: [5], groupSize: 3 });
  expect(planSlots(three, seven, gib)).toMatchObject({ rows: 8, slots: 3 });
  expect(planSlots(three, { ...seven, device: "cpu" }, gib)).toMatchObject({ rows: 3, slots: 3 });
});

test("little memory: first less room, then fewer slots, then fewer rows; the longest prompt and a few rows always", () => {
  const many = request({ promptLengths: Array(100).fill(10_000), maxConcurrent: 64 });
  const whole = slotBytes(planSlots(many, seven, 1000 * gib), seven);
  expect(planSlots(many, seven, whole - 1)).toMatchObject({ rows: 64, slots: 256, arenaTokens: 639_999 });
  const half = planSlots(many, seven, 15 * gib);
  expect(half.rows).toBe(64);
  expect(half.slots).toBeGreaterThan(64);
  expect(half.slots).toBeLessThan(256);
  const less = planSlots(many, seven, 3 * gib);
  expect(less.rows).toBeLessThan(64);
  expect(slotBytes(less, seven)).toBeLessThanOrEqual(3 * gib);
  expect(planSlots(many, seven, 0)).toMatchObject({ rows: 8, slots: 8, arenaTokens: 10_000 });
});

test("a fixed number of rows does not depend on the batch, and is refused where it does not fit", () => {
  const fixed = request({ promptLengths: [5], maxConcurrent: 100, fixedRows: true });
  expect(planSlots(fixed, seven, 100 * gib)).toMatchObject({ rows: 104, slots: 8 });
  expect(planSlots(fixed, { ...seven, device: "cpu" }, 100 * gib)).toMatchObject({ rows: 104, slots: 8 });
  expect(() => planSlots({ ...fixed, groupSize: 300 }, seven, gib)).toThrow(ConfigError);
});

test("what is planned fits, or is the least there is", () => {
  const requests = fc.record({
    promptLengths: fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 20 }),
    groupSize: fc.integer({ min: 1, max: 20 }),
    maxNewTokens: fc.integer({ min: 1, max: 2000 }),
    maxConcurrent: fc.integer({ min: 1, max: 300 }),
  });
  fc.assert(
    fc.property(requests, fc.integer({ min: 0, max: 40 * gib }), (some, bytes) => {
      const shape = planSlots(request(some), seven, bytes);
      const completions = some.promptLengths.length * some.groupSize;
      const longest = Math.max(...some.promptLengths);
      expect(shape.arenaTokens).toBeGreaterThanOrEqual(longest);
      expect(shape.slots).toBeGreaterThanOrEqual(Math.min(shape.rows, completions));
      expect(shape.slots).toBeLessThanOrEqual(completions);
      if (shape.rows > 8 || shape.slots > 8 || shape.arenaTokens > longest)
        expect(slotBytes(shape, seven)).toBeLessThanOrEqual(bytes);
    }),
  );
});
