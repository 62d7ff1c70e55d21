import { expect, test } from "vitest";
import { mropePositions } from "../../src/data/mrope.ts";
import { golden } from "./helpers.ts";

const ids = { image: 151655, video: 151656 };

for (const { layout, images, videos, ids: tokens, positions, next } of golden.positions) {
  test(`positions of ${layout} are those of transformers' get_rope_index`, () => {
    const out = mropePositions(tokens, images, videos, ids, 2);
    expect(Array.from(out.positions)).toEqual(positions.flat());
    expect(out.next).toBe(next);
  });
}

test("text alone counts on all axes", () => {
  const { positions, next } = mropePositions([5, 6, 7], [], [], ids, 2);
  expect(Array.from(positions)).toEqual([0, 1, 2, 0, 1, 2, 0, 1, 2]);
  expect(next).toBe(3);
});

test("what follows a video starts after its largest position, be that in time", () => {
  const tokens = [1, ...new Array(8).fill(ids.video), 2];
  const { positions, next } = mropePositions(tokens, [], [[8, 2, 2]], ids, 2);
  expect(Array.from(positions.subarray(0, 10))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(Array.from(positions.subarray(10, 20))).toEqual([0, 1, 1, 1, 1, 1, 1, 1, 1, 9]);
  expect(next).toBe(10);
});

test("a placeholder without a grid, or a grid cut off, is refused", () => {
  expect(() => mropePositions([ids.image], [], [], ids, 2)).toThrow(/no grid/);
  expect(() => mropePositions([ids.image], [[1, 4, 4]], [], ids, 2)).toThrow(/cut off/);
});
