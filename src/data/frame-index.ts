/**
 * Which frames of a video the model sees: SEED-Bench-R1's rule (its vision_process_egoplan.py), as plain arithmetic.
 */

import type { FrameRule } from "./options.ts";

/** A patch of the vision tower spans two frames, so their number is even. */
export const FRAME_FACTOR = 2;

/**
 * How many frames to take: `total / averageFps * fps`, between minFrames and maxFrames, at most `total`, rounded down to even.
 *
 * @param total number of frames in the video
 * @param averageFps frames of the video per second
 * @returns an even number, or 0 where the video has fewer than two frames
 */
export function frameCount(total: number, averageFps: number, rule: FrameRule): number {
  const floorEven = (n: number) => Math.floor(n / FRAME_FACTOR) * FRAME_FACTOR;
  const least = Math.ceil(rule.minFrames / FRAME_FACTOR) * FRAME_FACTOR;
  const most = floorEven(Math.min(rule.maxFrames, total));
  const wanted = (total / averageFps) * rule.fps;
  return floorEven(Math.min(Math.max(wanted, least), most, total));
}

/**
 * `round(linspace(0, total - 1, count))` with ties to even, as torch rounds. torch computes in float32: for up to 64 frames the result is the
 * same in videos of up to 432,000 frames (checked up to 20,000 densely, beyond at usual lengths); for 256 and more it can be one frame off.
 */
export function frameIndices(total: number, count: number): number[] {
  if (count === 1) return [0];
  return Array.from({ length: count }, (_, i) => roundHalfEven((i * (total - 1)) / (count - 1)));
}

/** Rounds to the nearest integer, ties to the even one: Python's and torch's `round`. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
