/** Frames of a video as pixels: by one pass, by seeking, or only counted. Every frame comes with its time, so that the caller can check it. */

import type { DecodePlan } from "./decode-plan.ts";
import { findFfmpeg, runFfmpeg } from "./ffmpeg.ts";
import type { PacketTable } from "./packets.ts";
import { type Picture, splitPpm } from "./ppm.ts";

/** A decoded frame and its presentation time in stream ticks. */
export interface DecodedFrame extends Picture {
  pts: number;
}

/** Decodes from the first frame to the last one wanted and lets frames through by their number. */
export async function decodeInOnePass(file: string, indices: readonly number[], timeoutMs?: number) {
  const wanted = indices.map((n) => `eq(n\\,${n})`).join("+");
  return decode(file, [], wanted, indices.length, timeoutMs);
}

/**
 * Decodes each group from its key frame, `parallel` groups at a time, and lets frames through by their time. A group that seeking misses
 * comes back short: the caller checks.
 */
export async function decodeBySeeking(
  file: string,
  table: PacketTable,
  groups: DecodePlan["groups"],
  parallel: number,
  timeoutMs?: number,
): Promise<DecodedFrame[]> {
  const decoded: DecodedFrame[][] = [];
  let next = 0;
  const worker = async () => {
    for (let g = next++; g < groups.length; g = next++) {
      const group = groups[g]!;
      const seek = seekOptions(table, group);
      const times = group.indices.map((n) => table.pts[n]!);
      const wanted = times.map((pts) => `eq(pts\\,${pts})`).join("+");
      const attempt = (options: string[]) => decode(file, options, wanted, times.length, timeoutMs);
      // Without the search for what an MP4's header says anyway, which would decode a key frame: 35 of 115 ms in 1080p.
      if (table.isMp4) decoded[g] = await attempt(["-nofind_stream_info", ...seek]).catch(() => []);
      if (!times.every((pts, i) => decoded[g]?.[i]?.pts === pts)) decoded[g] = await attempt(seek);
    }
  };
  await Promise.all(Array.from({ length: Math.min(parallel, groups.length) }, worker));
  return decoded.flat();
}

function seekOptions(table: PacketTable, { key }: DecodePlan["groups"][number]): string[] {
  // One thread: each further one first fills with frames past the wanted one (16 threads cost 1.8 x, measured at 11 frames).
  const options = ["-threads", "1"];
  if (key === 0) return options;
  // To somewhere near the middle of what lies behind the key frame: some containers are sought by decoding time, in which the next key frame
  // comes early, and ffmpeg 4 seeks 0.13 s too early where there are B-frames. Either would end at another key frame if the aim were close to one.
  let end = key + 1;
  while (end < table.pts.length && !table.isKey[end]) end++;
  // (Below the middle, since AVI rounds to whole frames and every frame may be a key frame.)
  const ticks = 0.6 * table.pts[key]! + 0.4 * table.pts[Math.min(end, table.pts.length - 1)]!;
  const seconds = Math.max(0, (ticks * table.timeBase.num) / table.timeBase.den);
  // As a time stamp of the file, not counted from its first one; frames are let through by `select`, not by ffmpeg's own cut.
  return [...options, "-noaccurate_seek", "-seek_timestamp", "1", "-ss", seconds.toFixed(6)];
}

/**
 * Decodes and returns the frames for which the `select` expression holds. `flags=bilinear` is how decord and PyAV convert to RGB: it decides
 * the chroma of 10-bit video only, where ffmpeg's own default (bicubic) differs; other flags (accurate_rnd, full_chroma_int) change 8-bit video too.
 */
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
      ...[
        "-map",
        "0:v:0",
        "-vf",
        `select=${wanted},showinfo,scale=flags=bilinear`,
        ...passthrough,
        "-frames:v",
        String(count),
      ],
      ...["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe"],
    ],
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  const pts = [...stderr.matchAll(/showinfo[^\n]* n: *\d+ pts: *(-?\d+)/g)].map((match) => Number(match[1]));
  return splitPpm(stdout).map((picture, i) => ({ ...picture, pts: pts[i] ?? Number.NaN }));
}

/** Frames the decoder really gives, counted by decoding all of them (shrunk, so that nothing large is piped). */
export async function countFrames(file: string, timeoutMs?: number): Promise<number> {
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
