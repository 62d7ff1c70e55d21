/** Which way to a video's wanted frames costs less processor time: decoding all of it once, or from the key frame before each wanted frame. */

import type { PacketTable } from "./packets.ts";

// Processor seconds with H.264 on one core, fitted to `npm run bench -- video` at 320x240, 640x360 and 1920x1080. Only ratios matter.
const SECONDS_PER_FRAME = 0.00015; // decoded, whatever its size
const SECONDS_PER_PIXEL = 2.0e-9;
const SECONDS_PER_PROCESS = 0.02;
/** Of the frames that a process decodes besides, in average ones: its key frame is an expensive one, and a few past the wanted one are decoded. */
const FRAMES_PER_PROCESS = 8;
/** Other containers than MP4 are searched for the pixel format first: one more key frame, of the file's beginning. */
const FRAMES_PER_SEARCH = 8;

/** Frames to decode with one process, and the key frame it starts from. */
export interface SeekGroup {
  key: number;
  indices: number[];
}

export interface DecodePlan {
  method: "pass" | "seek";
  groups: SeekGroup[];
  /** Frames decoded, and expected processor seconds, either way. */
  pass: { frames: number; seconds: number };
  seek: { frames: number; seconds: number };
}

/**
 * Compares processor time, not how soon the two ways end: other workers want the same cores.
 *
 * @param indices wanted frames, ascending, in presentation order
 */
export function planDecoding(table: PacketTable, indices: readonly number[]): DecodePlan {
  const groups = seekGroups(table, indices);
  const perFrame = SECONDS_PER_FRAME + table.width * table.height * SECONDS_PER_PIXEL;
  const besides = FRAMES_PER_PROCESS + (table.isMp4 ? 0 : FRAMES_PER_SEARCH);
  const cost = (frames: number, processes: number) => ({
    frames,
    seconds: processes * (SECONDS_PER_PROCESS + besides * perFrame) + frames * perFrame,
  });
  const pass = cost((indices.at(-1) ?? -1) + 1, 1);
  const seek = cost(
    groups.reduce((sum, { key, indices: wanted }) => sum + wanted.at(-1)! - key + 1, 0),
    groups.length,
  );
  return { method: seek.seconds < pass.seconds ? "seek" : "pass", groups, pass, seek };
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
