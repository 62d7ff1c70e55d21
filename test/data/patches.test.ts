import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { cutPatches } from "../../src/data/patches.ts";
import { resizeBicubic, smartResize } from "../../src/data/resize.ts";
import { fixture, floatsOf, golden, picture } from "./helpers.ts";

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

const whole = fixture("patches.json");

/** Frame `t` of generate_images.py's videos: the picture moved to the right by 3 t, around the edge. */
function movingFrame([height, width]: [number, number], t: number): Uint8Array {
  const still = picture(height, width);
  const out = new Uint8Array(still.length);
  for (let y = 0; y < height; y++) {
    const line = still.subarray(y * width * 3, (y + 1) * width * 3);
    const split = line.length - ((3 * t) % width) * 3;
    out.set(line.subarray(split), y * width * 3);
    out.set(line.subarray(0, split), y * width * 3 + line.length - split);
  }
  return out;
}

for (const { kind, size, frames, grid, sample, levels } of whole.cases) {
  test(`a whole ${kind} of ${frames} x ${size.join("x")}, resized and cut: grid and grey levels of transformers' processor`, () => {
    const [minPixels, maxPixels] = [whole.limits.shortest_edge, whole.limits.longest_edge];
    const to = smartResize(size[0], size[1], { factor: 28, minPixels, maxPixels });
    const resized = Array.from({ length: frames }, (_, t) =>
      resizeBicubic(movingFrame(size, t), size, to, kind === "image" ? "pil" : "torchvision"),
    );
    const out = cutPatches({ kind, frames, height: to[0], width: to[1], data: Buffer.concat(resized) }, rule);
    expect(out.grid).toEqual(grid);
    const columns = 3 * 2 * 14 * 14;
    const channel = (i: number) => Math.floor((i % columns) / (columns / 3));
    const seen = Uint8Array.from(out.pixels, (v, i) =>
      Math.round((v * rule.std[channel(i)]! + rule.mean[channel(i)]!) * 255),
    );
    expect(createHash("sha256").update(seen).digest("hex")).toBe(levels);
    const step = Math.max(1, Math.floor(out.pixels.length / columns / 4));
    const off = (row: number[], r: number) => row.map((v, c) => Math.abs(v - out.pixels[r * step * columns + c * 97]!));
    expect(Math.max(...sample.flatMap(off))).toBeLessThan(3e-7); // transformers' PIL processor divides by 255 first
  });
}
