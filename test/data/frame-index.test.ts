import { expect, test } from "vitest";
import { frameCount, frameIndices, roundHalfEven } from "../../src/data/frame-index.ts";
import { golden } from "./helpers.ts";

const seed = { fps: 2, minFrames: 4, maxFrames: 16 };

test.each([
  { total: 300, fps: 30, count: 16 }, // 20 wanted, 16 allowed
  { total: 150, fps: 30, count: 10 },
  { total: 150, fps: 30000 / 1001, count: 10 }, // 10.01
  { total: 149, fps: 30, count: 8 }, // 9.93, down to even
  { total: 60, fps: 30, count: 4 },
  { total: 30, fps: 30, count: 4 }, // 2 wanted, 4 is the least
  { total: 5, fps: 30, count: 4 },
  { total: 3, fps: 30, count: 2 },
  { total: 2, fps: 30, count: 2 },
  { total: 1, fps: 30, count: 0 },
  { total: 0, fps: 30, count: 0 },
])("$total frames at $fps fps give $count", ({ total, fps, count }) => {
  expect(frameCount(total, fps, seed)).toBe(count);
});

test("other limits: odd ones are made even inside the range", () => {
  expect(frameCount(1000, 25, { fps: 1, minFrames: 5, maxFrames: 9 })).toBe(8);
  expect(frameCount(100, 25, { fps: 1, minFrames: 5, maxFrames: 9 })).toBe(6);
  expect(frameCount(1000, 25, { fps: 1, minFrames: 4, maxFrames: 64 })).toBe(40);
});

test("indices are torch's rounded linspace", () => {
  for (const { total, n, indices } of golden.linspace) expect(frameIndices(total, n)).toEqual(indices);
});

test("ties go to even", () => {
  expect([0.5, 1.5, 2.5, 3.5, 2.4999, 2.5001].map(roundHalfEven)).toEqual([0, 2, 2, 4, 2, 3]);
});
