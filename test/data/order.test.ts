import fc from "fast-check";
import { expect, test } from "vitest";
import { sampleIndices } from "../../src/data/order.ts";

test("every epoch holds each sample once, without a gap between steps", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 9 }),
      fc.nat(1000),
      (size, perStep, seed) => {
        const walked: number[] = [];
        for (let step = 0; walked.length < size * 3; step++) walked.push(...sampleIndices(size, step, perStep, seed));
        for (const epoch of [0, 1, 2]) {
          const part = walked.slice(epoch * size, (epoch + 1) * size);
          expect([...part].sort((a, b) => a - b)).toEqual(Array.from({ length: size }, (_, i) => i));
        }
      },
    ),
    { numRuns: 30 },
  );
});

test("a step's samples depend on nothing but their arguments", () => {
  const later = sampleIndices(100, 57, 8, 3);
  for (let step = 0; step < 60; step++) sampleIndices(100, step, 8, 3);
  expect(sampleIndices(100, 57, 8, 3)).toEqual(later);
  expect(sampleIndices(100, 57, 8, 4)).not.toEqual(later);
});

test("the split into steps does not change the order", () => {
  const walk = (perStep: number) =>
    Array.from({ length: 24 / perStep }, (_, s) => sampleIndices(24, s, perStep, 1)).flat();
  expect(walk(3)).toEqual(walk(8));
});

test("epochs differ, and an empty data set is refused", () => {
  expect(sampleIndices(50, 0, 50, 1)).not.toEqual(sampleIndices(50, 1, 50, 1));
  expect(() => sampleIndices(0, 0, 1, 1)).toThrow(/0 samples/);
});
