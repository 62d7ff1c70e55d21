import { expect, test } from "vitest";
import { cutPatches } from "../../src/data/patches.ts";
import { floatsOf, golden, picture } from "./helpers.ts";

const rule = {
  patchSize: 14,
  temporalPatch: 2,
  merge: 2,
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
} as const;

/** Every 7th column, as the fixture keeps them. */
function columns(pixels: Float32Array, width: number): number[] {
  return Array.from(pixels).filter((_, i) => (i % width) % 7 === 0);
}

for (const kind of ["image", "video"] as const) {
  test(`patches of a ${kind} are those of transformers' processor, bit for bit`, () => {
    const { size, frames = 1, grid, shape, columns: expected } = golden.patches[kind];
    const media = { kind, frames, height: size[0], width: size[1], data: picture(size[0], size[1], frames) };
    const out = cutPatches(media, rule);
    expect(out.grid).toEqual(grid);
    expect(out.pixels.length).toBe(shape[0] * shape[1]);
    expect(columns(out.pixels, shape[1])).toEqual(Array.from(floatsOf(expected)));
  });
}

test("an odd number of frames repeats the last one", () => {
  const data = picture(28, 28, 3);
  const padded = new Uint8Array([...data, ...data.subarray(-28 * 28 * 3)]);
  const odd = cutPatches({ kind: "video", frames: 3, height: 28, width: 28, data }, rule);
  const even = cutPatches({ kind: "video", frames: 4, height: 28, width: 28, data: padded }, rule);
  expect(odd.grid).toEqual([2, 2, 2]);
  expect(odd.pixels).toEqual(even.pixels);
});

test("a size that is no multiple of the merged patch is our bug, not silently cut", () => {
  const media = { kind: "image", frames: 1, height: 30, width: 28, data: picture(30, 28) } as const;
  expect(() => cutPatches(media, rule)).toThrow(/28x30 is no multiple of 28/);
});
