/**
 * Frames of a video, decoded exactly at the indices the rule names (frame-index.ts), for constant and variable frame rates alike.
 *
 * Two ways to the same pixels. One pass decodes the whole file and lets the frames through that are wanted; it counts frames, so it is
 * exact by construction. Seeking decodes from the key frame before each wanted frame, for long files far cheaper, and finds the frame by its
 * presentation time from the packet scan. Whatever came out is checked against that scan. Where seeking missed (transport streams have no index) the
 * single pass follows; where that disagrees too (containers without times, clips that begin off a key frame) the frames are counted by decoding
 * all of them, and the single pass decides.
 *
 * The seed reads videos with decord and falls back to torchvision. Compared with decord 0.6.0, file by file:
 * - clean files (MP4, MOV, Matroska, WebM, FLV; H.264, HEVC, VP8, VP9, MPEG-4; 8 and 10 bit; constant and variable rate): same frames, same pixels
 * - a display matrix of 90, 180, 270 degrees is applied, as decord does (torchvision does not). Odd angles and mirrored pictures, which no camera
 *   writes, are up to ffmpeg: decord leaves the former alone and takes the latter for 180 degrees
 * - the sample aspect ratio is ignored: pictures keep their stored size
 * - an edit list's hidden frames (MP4 cut by stream copy) are not counted; decord counts them, shows the first visible frame in their
 *   place and runs late until the next key frame. B-frames without their key frame are not counted either
 * - MPEG-4 with B-frames, AVI with B-frames, MPEG-TS and MPEG-PS: decord 0.6.0 returns other frames than its own indices name; ours are those named
 */

import { MediaError } from "../errors.ts";
import { countFrames, type DecodedFrame, decodeBySeeking, decodeInOnePass } from "./decode-frames.ts";
import { planDecoding } from "./decode-plan.ts";
import { frameCount, frameIndices } from "./frame-index.ts";
import type { FrameRule } from "./options.ts";
import { type PacketTable, scanPackets } from "./packets.ts";

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

/**
 * Decodes the frames that `rule` picks.
 *
 * @throws MediaError for a missing, broken, cut-off or too short (fewer than two frames) file, and for a codec this ffmpeg lacks
 */
export async function decodeVideo(file: string, rule: FrameRule, options: DecodeOptions = {}): Promise<VideoFrames> {
  const { timeoutMs, parallel = 2 } = options;
  const table = await scanPackets(file, timeoutMs);
  if (table.hasTimes) {
    const indices = pickIndices(file, table.pts.length, table.averageFps, rule);
    const plan = planDecoding(table, indices);
    if ((options.method ?? plan.method) === "seek") {
      const decoded = await decodeBySeeking(file, table, plan.groups, parallel, timeoutMs);
      if (agrees(decoded, table, indices)) return result(file, decoded, indices, table, "seek");
    }
    const decoded = await decodeInOnePass(file, indices, timeoutMs);
    if (agrees(decoded, table, indices)) return result(file, decoded, indices, table, "pass");
  }
  const total = await countFrames(file, timeoutMs);
  const indices = pickIndices(file, total, table.averageFps, rule);
  const decoded = await decodeInOnePass(file, indices, timeoutMs);
  if (decoded.length !== indices.length) {
    throw new MediaError(file, `decoding gave ${decoded.length} of the ${indices.length} frames asked for`);
  }
  return { ...result(file, decoded, indices, table, "recount"), total };
}

function pickIndices(file: string, total: number, averageFps: number, rule: FrameRule): number[] {
  const count = frameCount(total, averageFps, rule);
  if (!(count >= 2)) throw new MediaError(file, `has ${total} frame${total === 1 ? "" : "s"}, at least 2 are needed`);
  return frameIndices(total, count);
}

function agrees(decoded: readonly DecodedFrame[], table: PacketTable, indices: readonly number[]): boolean {
  return decoded.length === indices.length && decoded.every((frame, i) => frame.pts === table.pts[indices[i]!]);
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
