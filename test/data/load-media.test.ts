import { writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadMedia } from "../../src/data/load-media.ts";
import type { FrameRule, SizeRule } from "../../src/data/options.ts";
import { MediaError } from "../../src/errors.ts";
import { picture, readFrameNumber, temporaryFolder, writeNumberedClip } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
const clip = join(folder.path, "clip.mp4");
const photo = join(folder.path, "photo.png");
/** SEED-Bench-R1's values. */
const seedFrames: FrameRule = { fps: 2, minFrames: 4, maxFrames: 16 };
const wide: SizeRule = { factor: 28, minPixels: 56 * 56, maxPixels: 1e9 };
const forced: SizeRule = { ...wide, resizedHeight: 256, resizedWidth: 256 };

beforeAll(async () => {
  // 4 s at 10 fps, 168 x 112.
  await writeNumberedClip(clip, { frames: 40, rate: "10", width: 168, height: 112 });
  await sharp(picture(90, 130), { raw: { width: 130, height: 90, channels: 3 } })
    .png()
    .toFile(photo);
});

const video = (frames: FrameRule, size: SizeRule) =>
  loadMedia({ kind: "video", file: clip, frames, size, cache: null });
const image = (size: SizeRule) => loadMedia({ kind: "image", file: photo, frames: seedFrames, size, cache: null });

test.each([
  ["the seed's", {}, [0, 6, 11, 17, 22, 28, 33, 39]],
  ["fps", { fps: 1 }, [0, 13, 26, 39]],
  ["fps, a broken number", { fps: 1.6 }, [0, 8, 16, 23, 31, 39]],
  ["minFrames", { fps: 0.1, minFrames: 6 }, [0, 8, 16, 23, 31, 39]],
  ["an odd minFrames is made even", { fps: 0.1, minFrames: 5 }, [0, 8, 16, 23, 31, 39]],
  ["maxFrames", { maxFrames: 4 }, [0, 13, 26, 39]],
  ["an odd maxFrames is made even", { maxFrames: 5 }, [0, 13, 26, 39]],
  ["more than the video has", { fps: 1000, maxFrames: 64 }, Array.from({ length: 40 }, (_, i) => i)],
] as [string, Partial<FrameRule>, number[]][])("frames of a 4 s video by %s", async (_, knobs, expected) => {
  const { frames, height, width, data } = await video({ ...seedFrames, ...knobs }, wide);
  expect([frames, height, width]).toEqual([expected.length, 112, 168]);
  const size = height * width * 3;
  const seen = expected.map((_, i) => readFrameNumber(data.subarray(i * size, (i + 1) * size), width, height));
  expect(seen).toEqual(expected);
});

describe("size", () => {
  test.each([
    [
      "the seed's forced 256 x 256 is 252 x 252, whatever the limits",
      { ...forced, maxPixels: 28 * 28 },
      [252, 252],
      [252, 252],
    ],
    ["a forced size that is no square", { ...forced, resizedHeight: 100, resizedWidth: 300 }, [112, 308], [112, 308]],
    ["one side alone forces nothing", { ...wide, resizedHeight: 256 }, [112, 168], [84, 140]],
    ["maxPixels shrinks", { ...wide, maxPixels: 28 * 28 * 6 }, [56, 84], [56, 56]],
    ["minPixels grows", { ...wide, minPixels: 300 * 300 }, [252, 392], [252, 364]],
  ] as [string, SizeRule, [number, number], [number, number]][])("%s", async (_, size, ofVideo, ofImage) => {
    const [moving, still] = await Promise.all([video(seedFrames, size), image(size)]);
    expect([moving.height, moving.width]).toEqual(ofVideo);
    expect([still.height, still.width, still.frames]).toEqual([...ofImage, 1]);
    expect(moving.data.length).toBe(moving.frames * ofVideo[0] * ofVideo[1] * 3);
    expect(still.data.length).toBe(ofImage[0] * ofImage[1] * 3);
    const first = moving.data.subarray(0, ofVideo[0] * ofVideo[1] * 3);
    expect(readFrameNumber(first, moving.width, moving.height)).toBe(0);
  });
});

test("a strip more than 200 times as long as wide is refused by name", async () => {
  const strip = join(folder.path, "strip.png");
  writeFileSync(
    strip,
    await sharp(new Uint8Array(3 * 603), { raw: { width: 603, height: 1, channels: 3 } })
      .png()
      .toBuffer(),
  );
  const loading = loadMedia({ kind: "image", file: strip, frames: seedFrames, size: wide, cache: null });
  await expect(loading).rejects.toThrow(MediaError);
  await expect(loading).rejects.toThrow(/strip\.png.*603x1/);
});
