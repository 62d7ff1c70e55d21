/** The layout of a pack. */

import { expect, test } from "vitest";
import { mediaOf, packGroups } from "../../src/model/packed.ts";

const prompt = (ids: number[], next: number, grid?: [number, number, number]) => ({
  inputIds: Int32Array.from(ids),
  positions: Int32Array.from([...ids.map((_, i) => i), ...ids.map((_, i) => 10 + i), ...ids.map((_, i) => 20 + i)]),
  nextPosition: next,
  images: grid === undefined ? [] : [{ grid, pixels: new Float32Array(0) }],
  videos: [],
});

test("prompts first, then completions; positions continue on all axes; first tokens are predicted by the prompt's last row", () => {
  const pack = packGroups([
    { prompt: prompt([1, 2, 3], 30), completions: [Int32Array.of(4, 5), Int32Array.of(6)] },
    { prompt: prompt([7, 8], 40), completions: [new Int32Array(0), Int32Array.of(9, 10)] },
  ]);
  expect([...pack.ids]).toEqual([1, 2, 3, 7, 8, 4, 5, 6, 9, 10]);
  expect([...pack.positions]).toEqual([
    ...[0, 1, 2, 0, 1, 30, 31, 30, 40, 41],
    ...[10, 11, 12, 10, 11, 30, 31, 30, 40, 41],
    ...[20, 21, 22, 20, 21, 30, 31, 30, 40, 41],
  ]);
  expect(pack.promptLengths).toEqual([3, 2]);
  expect(pack.completionLengths).toEqual([
    [2, 1],
    [0, 2],
  ]);
  expect(pack.promptTokens).toBe(5);
  expect([...pack.targets]).toEqual([4, 5, 6, 9, 10]);
  expect([...pack.predictRows]).toEqual([2, 5, 2, 4, 8]);
});

test("media of several prompts: all images, then all videos", () => {
  const a = prompt([1], 1, [1, 2, 2]);
  const b = prompt([1], 1, [1, 4, 4]);
  const video = { grid: [2, 2, 2] as [number, number, number], pixels: new Float32Array(0) };
  const media = mediaOf([{ ...a, videos: [video] }, b]);
  expect(media.map(({ grid }) => grid)).toEqual([
    [1, 2, 2],
    [1, 4, 4],
    [2, 2, 2],
  ]);
});

test("a prompt whose positions do not fit is a bug", () => {
  const broken = { ...prompt([1, 2], 2), positions: new Int32Array(4) };
  expect(() => packGroups([{ prompt: broken, completions: [] }])).toThrow("2 ids has 4 positions");
});
