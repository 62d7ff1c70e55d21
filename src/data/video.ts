/**
 * Frames of a video, decoded exactly at the indices the rule names (frame-index.ts), for constant and variable frame rates alike.
 *
 * Two ways to the same pixels. One pass decodes the whole file and lets the frames through that are wanted; it counts frames, so it is
 * exact by construction. Seeking decodes from the key frame before each wanted frame, for long files far cheaper, and finds the frame by its
 * presentation time from the packet scan. Whatever came out is checked against that scan. Where seeking missed (transport streams have no index) the
 * single pass follows; where that disagrees too (containers without times, clips that begin off a key frame) the frames are counted by decoding
 * all of them, and the single pass decides.
 */

import { MediaError } from "../errors.ts";
import { findFfmpeg, runFfmpeg } from "./ffmpeg.ts";
import { frameCount, frameIndices } from "./frame-index.ts";
import type { FrameRule } from "./options.ts";
import { type PacketTable, scanPackets } from "./packets.ts";
import { type Picture, splitPpm } from "./ppm.ts";

export interface VideoFrames {
  indices: number[]; // frame numbers in the file, ascending
  total: number; // frames in the file
  averageFps: number;
  width: number; // as shown, rotation applied
  height: number;
  /** uint8 RGB, [height, width, 3] each. */
  frames: Uint8Array[];
  method: "pass" | "seek" | "recount";
}

export interface DecodeOptions {
  timeoutMs?: number;
  /** Forces a way instead of choosing by cost. */
  method?: "pass" | "seek";
  /** Seeks at a time. */
  parallel?: number;
}

// Processor time, measured with H.264 on one core: a pixel decoded, a process started. Only their ratio matters.
const SECONDS_PER_PIXEL = 2.3e-9;
const SECONDS_PER_PROCESS = 0.1;

/**
 * Decodes the frames that `rule` picks.
 *
 * @throws MediaError for a missing, broken, cut-off or too short (fewer than two frames) file.
 */
export async function decodeVideo(file: string, rule: FrameRule, options: DecodeOptions = {}): Promise<VideoFrames> {
  const table = await scanPackets(file, options.timeoutMs);
  const parallel = options.parallel ?? 2;
  if (table.hasTimes) {
    const indices = pickIndices(file, table.pts.length, table.averageFps, rule);
    const method = options.method ?? cheaperMethod(table, indices);
    if (method === "seek") {
      const decoded = await decodeBySeeking(file, table, indices, parallel, options.timeoutMs);
      if (agrees(decoded, table, indices)) return result(file, decoded, indices, table, "seek");
    }
    const decoded = await decodeInOnePass(file, indices, options.timeoutMs);
    if (agrees(decoded, table, indices)) return result(file, decoded, indices, table, "pass");
  }
  const total = await countFrames(file, options.timeoutMs);
  const indices = pickIndices(file, total, table.averageFps, rule);
  const decoded = await decodeInOnePass(file, indices, options.timeoutMs);
  if (decoded.length !== indices.length) {
    throw new MediaError(file, `decoding gave ${decoded.length} of the ${indices.length} frames asked for`);
  }
  return { ...result(file, decoded, indices, table, "recount"), total };
}

/** A decoded frame and its presentation time in stream ticks. */
interface DecodedFrame extends Picture {
  pts: number;
}

function pickIndices(file: string, total: number, averageFps: number, rule: FrameRule): number[] {
  const count = frameCount(total, averageFps, rule);
  if (!(count >= 2)) throw new MediaError(file, `has ${total} frame${total === 1 ? "" : "s"}, at least 2 are needed`);
  return frameIndices(total, count);
}

function agrees(decoded: readonly DecodedFrame[], table: PacketTable, indices: readonly number[]): boolean {
  return decoded.length === indices.length && decoded.every((frame, i) => frame.pts === table.pts[indices[i]!]);
}

/** Compares the processor time of the two ways, not how soon they end: other workers want the same cores. */
function cheaperMethod(table: PacketTable, indices: readonly number[]): "pass" | "seek" {
  const perFrame = table.width * table.height * SECONDS_PER_PIXEL;
  const onePass = SECONDS_PER_PROCESS + table.pts.length * perFrame;
  const costOf = (group: SeekGroup) => SECONDS_PER_PROCESS + (group.indices.at(-1)! - group.key + 1) * perFrame;
  const seeking = seekGroups(table, indices).reduce((sum, group) => sum + costOf(group), 0);
  return seeking < onePass ? "seek" : "pass";
}

/** Frames to decode with one process, and the key frame it starts from. */
interface SeekGroup {
  key: number;
  indices: number[];
}

/** Wanted frames that share a key frame are decoded by one process. */
function seekGroups(table: PacketTable, indices: readonly number[]): SeekGroup[] {
  const groups: SeekGroup[] = [];
  for (const index of indices) {
    let key = index;
    while (key > 0 && !table.isKey[key]) key--;
    const last = groups.at(-1);
    if (last?.key === key) last.indices.push(index);
    else groups.push({ key, indices: [index] });
  }
  return groups;
}

async function decodeInOnePass(
  file: string,
  indices: readonly number[],
  timeoutMs: number | undefined,
): Promise<DecodedFrame[]> {
  const wanted = indices.map((n) => `eq(n\\,${n})`).join("+");
  return decode(file, [], wanted, indices.length, timeoutMs);
}

async function decodeBySeeking(
  file: string,
  table: PacketTable,
  indices: readonly number[],
  parallel: number,
  timeoutMs: number | undefined,
): Promise<DecodedFrame[]> {
  const groups = seekGroups(table, indices);
  const decoded: DecodedFrame[][] = [];
  const tick = table.timeBase.num / table.timeBase.den;
  let next = 0;
  const worker = async () => {
    for (let g = next++; g < groups.length; g = next++) {
      const first = groups[g]!.indices[0]!;
      // Half a frame early: rounding in the container's or ffmpeg's clock can then not skip the frame itself.
      const midpoint = first === 0 ? undefined : ((table.pts[first - 1]! + table.pts[first]!) / 2) * tick;
      const seek = midpoint === undefined ? [] : ["-ss", Math.max(0, midpoint - table.startSeconds).toFixed(6)];
      const wanted = groups[g]!.indices.map((n) => `eq(pts\\,${table.pts[n]})`).join("+");
      decoded[g] = await decode(file, seek, wanted, groups[g]!.indices.length, timeoutMs);
    }
  };
  await Promise.all(Array.from({ length: Math.min(parallel, groups.length) }, worker));
  return decoded.flat();
}

/** Decodes and returns the frames for which the `select` expression holds. The conversion to rgb24 is ffmpeg's default: flags change it. */
async function decode(
  file: string,
  input: readonly string[],
  wanted: string,
  count: number,
  timeoutMs: number | undefined,
): Promise<DecodedFrame[]> {
  const { passthrough } = await findFfmpeg();
  const { stdout, stderr } = await runFfmpeg(file, {
    input: ["-copyts", ...input],
    output: [
      ...["-map", "0:v:0", "-vf", `select=${wanted},showinfo`, ...passthrough, "-frames:v", String(count)],
      ...["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe"],
    ],
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  const pts = [...stderr.matchAll(/showinfo[^\n]* n: *\d+ pts: *(-?\d+)/g)].map((match) => Number(match[1]));
  return splitPpm(stdout).map((picture, i) => ({ ...picture, pts: pts[i] ?? Number.NaN }));
}

/** Frames the decoder really gives, counted by decoding all of them (shrunk, so that nothing large is piped). */
async function countFrames(file: string, timeoutMs: number | undefined): Promise<number> {
  const { passthrough } = await findFfmpeg();
  const { stdout } = await runFfmpeg(file, {
    input: [],
    output: ["-map", "0:v:0", "-vf", "scale=16:16:flags=neighbor", ...passthrough, "-f", "framecrc"],
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  return stdout
    .toString("latin1")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#")).length;
}

function result(
  file: string,
  decoded: readonly DecodedFrame[],
  indices: number[],
  table: PacketTable,
  method: VideoFrames["method"],
): VideoFrames {
  const { width, height } = decoded[0]!;
  if (decoded.some((frame) => frame.width !== width || frame.height !== height)) {
    throw new MediaError(file, "changes its picture size on the way, which is not supported");
  }
  const frames = decoded.map((frame) => frame.data);
  return { indices, total: table.pts.length, averageFps: table.averageFps, width, height, frames, method };
}
