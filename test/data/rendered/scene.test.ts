/** The pixels: do the frames show what the records say, also after H.264? */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runFfmpeg } from "../../../src/data/ffmpeg.ts";
import { encodeVideo } from "../../../src/data/rendered/encode.ts";
import { SCENE_HEIGHT, SCENE_WIDTH } from "../../../src/data/rendered/environment.ts";
import { Canvas, type Rgb } from "../../../src/data/rendered/raster.ts";
import { COLOURS, type Colour } from "../../../src/data/rendered/recipe.ts";
import { type PlannedVideo, planVideo } from "../../../src/data/rendered/records.ts";
import { renderClip, renderObservation } from "../../../src/data/rendered/scene.ts";
import { handAt } from "../../../src/data/rendered/timeline.ts";

const FRAME = SCENE_WIDTH * SCENE_HEIGHT * 3;
const videos = (["train", "L1", "L2", "L3"] as const).flatMap((split) =>
  [0, 1, 2, 3].map((i) => planVideo(3, split, i)),
);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "grove-scene-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** The colour of the piece in each slot, or null where it is empty, read off the pixels. */
function readSlots(pixels: Uint8Array, { clip }: PlannedVideo): (Colour | null)[] {
  const { environment } = clip;
  const canvas = new Canvas(SCENE_WIDTH, SCENE_HEIGHT, environment.camera);
  return environment.slots.map(([x, y]) => {
    const [px, py] = canvas.toPixel(x, y);
    const votes = new Map<Colour, number>();
    let seen = 0;
    for (let j = Math.floor(py - 8); j <= py + 8; j++) {
      for (let i = Math.floor(px - 8); i <= px + 8; i++) {
        const at = (j * SCENE_WIDTH + i) * 3;
        const pixel: Rgb = [pixels[at]!, pixels[at + 1]!, pixels[at + 2]!];
        const nearest = COLOURS.reduce((a, b) =>
          distance(pixel, environment.palette[a]) <= distance(pixel, environment.palette[b]) ? a : b,
        );
        seen++;
        if (distance(pixel, environment.palette[nearest]) < distance(pixel, environment.board.colour)) {
          votes.set(nearest, (votes.get(nearest) ?? 0) + 1);
        }
      }
    }
    const [colour, count] = [...votes].sort((a, b) => b[1] - a[1])[0] ?? [null, 0];
    return count > 0.15 * seen ? colour : null;
  });
}

function distance(a: Rgb, b: Rgb): number {
  return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

test.each(
  videos.map((video) => [video.videoName, video] as const),
)("%s shows its pieces in their slots after encoding and decoding", async (name, video) => {
  const { clip } = video;
  const file = path.join(folder, name);
  await encodeVideo(file, renderClip(clip), SCENE_WIDTH, SCENE_HEIGHT, clip.environment.fps);
  const { stdout } = await runFfmpeg(file, { input: [], output: ["-f", "rawvideo", "-pix_fmt", "rgb24"] });
  expect(stdout.length).toBe(clip.frameCount * FRAME);
  for (let i = 0; i < clip.frameCount; i++) {
    const time = i / clip.environment.fps;
    if (handAt(clip.environment, clip.placements, time) !== null) continue; // it may hide a slot
    const placed = clip.placements.filter((placement) => placement.release <= time).length;
    const expected = clip.recipe.map((piece, slot) => (slot < placed ? piece.colour : null));
    expect(readSlots(stdout.subarray(i * FRAME, (i + 1) * FRAME), video), `frame ${i}`).toEqual(expected);
  }
});

test("the same seed renders the same bytes, another seed others", () => {
  const frames = (seed: number) => Buffer.from(renderClip(planVideo(seed, "L2", 1).clip));
  expect(frames(3).equals(frames(3))).toBe(true);
  expect(frames(3).equals(frames(4))).toBe(false);
});

test.each(
  videos.map((video) => [video.imageName, video] as const),
)("%s shows every piece of the supply", (_name, video) => {
  const { environment } = video.clip;
  const pixels = renderObservation(environment, video.supply, ...video.keys, "observation");
  const area = (colour: Colour) => {
    let count = 0;
    for (let at = 0; at < pixels.length; at += 3) {
      const pixel: Rgb = [pixels[at]!, pixels[at + 1]!, pixels[at + 2]!];
      if (distance(pixel, environment.palette[colour]) < 3) count++;
    }
    return count;
  };
  for (const piece of video.supply) expect(area(piece.colour)).toBeGreaterThan(100);
});

test("the hand moves between frames while it carries a piece", () => {
  const { clip } = planVideo(3, "L1", 0);
  const first = clip.placements[0]!;
  const frames = renderClip(clip);
  const frame = Math.round((first.enter + 0.3 * (first.leave - first.enter)) * clip.environment.fps);
  const still = frames.subarray((clip.frameCount - 2) * FRAME, (clip.frameCount - 1) * FRAME);
  const changed = (a: Uint8Array, b: Uint8Array) => a.reduce((sum, value, i) => sum + (value === b[i] ? 0 : 1), 0);
  const moving = frames.subarray(frame * FRAME, (frame + 1) * FRAME);
  expect(changed(moving, frames.subarray((frame + 1) * FRAME, (frame + 2) * FRAME))).toBeGreaterThan(500);
  expect(changed(still, frames.subarray((clip.frameCount - 1) * FRAME))).toBe(0);
});
