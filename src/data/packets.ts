/**
 * What a video holds, read from its packets without decoding: presentation times, key frames, mean frame rate.
 * `ffmpeg -c copy -f framecrc` prints one line a packet, so no ffprobe is needed.
 */

import { MediaError } from "../errors.ts";
import { runFfmpeg } from "./ffmpeg.ts";

export interface PacketTable {
  /** Presentation times in ticks of `timeBase`, ascending: one entry a frame that can be shown. */
  pts: number[];
  /** isKey[i]: decoding can start at frame i. */
  isKey: boolean[];
  timeBase: { num: number; den: number }; // seconds per tick
  /** MP4 or MOV: the header tells all that decoding needs. */
  isMp4: boolean;
  /** The container's average frame rate, as decord and PyAV hand it to the rule; see `averageRate`. */
  averageFps: number;
  width: number; // as coded, before any rotation
  height: number;
  /** False where packets carry no usable times (some AVI, raw streams): then only counting frames is exact. */
  hasTimes: boolean;
}

const FLAG_KEY = 1;
const FLAG_DISCARD = 4; // decoded for later frames but never shown (edit lists)
const NO_PTS = -(2 ** 63); // how framecrc spells "this packet has no presentation time"

/**
 * Scans the first video stream of a file.
 *
 * @throws MediaError for a file that is missing, is cut off, or has no video in it.
 */
export async function scanPackets(file: string, timeoutMs?: number): Promise<PacketTable> {
  const { stdout, stderr } = await runFfmpeg(file, {
    input: ["-copyts"],
    output: ["-map", "0:v:0", "-c", "copy", "-copyinkf", "-copytb", "1", "-f", "framecrc"],
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  // The last two are Matroska's: of ffmpeg up to 4.1, and since.
  const cut = /^.*(partial file|moov atom not found|\] Read error|File ended prematurely).*$/m.exec(stderr);
  if (cut) throw new MediaError(file, `is cut off (${cut[0].trim()})`);
  return parseFrameCrc(file, stdout.toString("latin1"), stderr);
}

/** Parses framecrc lines: `stream, dts, pts, duration, size, crc[, F=0x flags][, side data]`; flags are left out for plain key packets. */
export function parseFrameCrc(file: string, text: string, log: string): PacketTable {
  const timeBase = /^#tb 0: (\d+)\/(\d+)$/m.exec(text);
  const size = /^#dimensions 0: (\d+)x(\d+)$/m.exec(text);
  if (!timeBase || !size) throw new MediaError(file, "has no video stream");
  const shown: (Shown & { key: boolean })[] = [];
  let hasTimes = true;
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const fields = line.split(",");
    const flags = /F=0x([0-9A-Fa-f]+)/.exec(line)?.[1];
    const bits = flags === undefined ? FLAG_KEY : Number.parseInt(flags, 16);
    if (bits & FLAG_DISCARD) continue;
    const pts = Number(fields[2]);
    if (!Number.isFinite(pts) || pts <= NO_PTS) hasTimes = false;
    shown.push({ pts, duration: Number(fields[3]), key: (bits & FLAG_KEY) !== 0 });
  }
  if (hasTimes) shown.sort((a, b) => a.pts - b.pts);
  for (let i = 1; i < shown.length; i++) if (shown[i]!.pts === shown[i - 1]!.pts) hasTimes = false;
  const table = { num: Number(timeBase[1]), den: Number(timeBase[2]) };
  return {
    pts: shown.map((p) => p.pts),
    isKey: shown.map((p) => p.key),
    timeBase: table,
    isMp4: /^Input #0, mov,mp4,/m.test(log),
    averageFps: averageRate(shown, table, hasTimes, log),
    width: Number(size[1]),
    height: Number(size[2]),
    hasTimes,
  };
}

interface Shown {
  pts: number;
  duration: number;
}

/**
 * The rate that the seed's rule divides by is libavformat's avg_frame_rate: in MP4 frames over their time, elsewhere often what the file's
 * header claims, also where that is wrong (Matroska with a variable rate). ffmpeg's log prints it with two decimals, which is too few for
 * clips whose frame count lies on an edge of the rule: so it is refined by the packets' times where the two are the same number.
 */
function averageRate(
  shown: readonly Shown[],
  timeBase: PacketTable["timeBase"],
  hasTimes: boolean,
  log: string,
): number {
  const measured = meanRate(shown, timeBase, hasTimes);
  const [, digits, kilo] = /Video: .*?, ([\d.]+)(k?) fps,/.exec(log) ?? [];
  const printed = Number(digits) * (kilo === "k" ? 1000 : 1);
  if (!(printed > 0)) return measured;
  // 30 fps in whole milliseconds is 29.9997 or 30.0003: a nominal rate stands if it explains the times to two ticks.
  const nominal = [(Math.round(printed) * 1000) / 1001, printed].filter((rate) => Math.abs(rate - printed) <= 0.005);
  const tick = timeBase.num / timeBase.den;
  const explains = (rate: number) => Math.abs(shown.length / rate - shown.length / measured) <= 2 * tick;
  const rate = hasTimes ? nominal.find(explains) : undefined;
  return rate ?? (Math.abs(measured - printed) <= 0.005 ? measured : printed);
}

/** Frames per second over the whole stream: the span from the first frame to the end of the last one. */
function meanRate(shown: readonly Shown[], timeBase: PacketTable["timeBase"], hasTimes: boolean): number {
  const last = shown.at(-1);
  const first = shown[0];
  if (!last || !first) return Number.NaN;
  let ticks: number;
  if (hasTimes) {
    // A container without durations writes 0 for the last frame: it is shown as long as the frames before it, on average.
    const span = last.pts - first.pts;
    ticks = span + (last.duration > 0 ? last.duration : shown.length > 1 ? span / (shown.length - 1) : 1);
  } else {
    ticks = shown.reduce((sum, p) => sum + Math.max(p.duration, 1), 0);
  }
  // Reduced like a rational before the division, so that 150 frames in exactly 5 s give 30 and not 29.999...
  const num = shown.length * timeBase.den;
  const den = ticks * timeBase.num;
  const divisor = Number.isInteger(den) ? gcd(num, den) : 1;
  return num / divisor / (den / divisor);
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}
