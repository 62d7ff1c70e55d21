import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodeWithFfmpeg, findFfmpeg } from "../../src/data/ffmpeg.ts";
import { decodeVideo, type VideoFrames } from "../../src/data/video.ts";
import { type ClipSpec, readFrame, readFrameNumber, temporaryFolder, writeNumberedClip } from "./helpers.ts";

const rule = { fps: 2, minFrames: 4, maxFrames: 16 };
const folder = temporaryFolder();
afterAll(folder.remove);
const at = (name: string) => join(folder.path, name);
const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/data/clips/${name}`, import.meta.url));
const numbers = ({ frames, width, height }: VideoFrames) => frames.map((f) => readFrameNumber(f, width, height));
const ffmpeg = (...args: string[]) => encodeWithFfmpeg(["-loglevel", "error", ...args]);

const x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"];
const bFrames = [...x264, "-g", "12", "-bf", "2"];
const mpeg4 = ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"];
const x265 = (options: string) => ["-c:v", "libx265", "-x265-params", `log-level=none:keyint=12:bframes=3:${options}`];
const { passthrough } = await findFfmpeg();
const everyFifthGapTripled = ["-vf", "setpts='N+floor(N/5)*2'", ...passthrough];

// Clips of 90 frames at 30 fps last 3 s and give 6 frames, of 60 frames at 24 to 30 fps 4.
const of90 = [0, 18, 36, 53, 71, 89];
const of60 = [0, 20, 39, 59];

interface Case extends ClipSpec {
  name: string;
  expected: number[];
  averageFps: number;
  /** How the frames were found when each way is asked for, where it is not that way. */
  pass?: "recount";
  seek?: "pass" | "recount";
}

const rendered: Case[] = [
  { name: "30.mp4", frames: 90, rate: "30", averageFps: 30, expected: of90 },
  { name: "2997.mp4", frames: 90, rate: "30000/1001", averageFps: 30000 / 1001, expected: of90 },
  { name: "25.mkv", frames: 100, rate: "25", averageFps: 25, expected: [0, 14, 28, 42, 57, 71, 85, 99] },
  // 72 frames at 24 fps are 3 s; counted in Matroska's milliseconds they would be 2.999 s and give 4 frames.
  { name: "24.mkv", frames: 72, rate: "24", averageFps: 24, expected: [0, 14, 28, 43, 57, 71] },
  { name: "2398.mkv", frames: 72, rate: "24000/1001", averageFps: 24000 / 1001, expected: [0, 14, 28, 43, 57, 71] },
  { name: "three.mp4", frames: 3, rate: "30", averageFps: 30, expected: [0, 2] },
  { name: "two.mp4", frames: 2, rate: "30", averageFps: 30, expected: [0, 1] },
  {
    name: "long-gop.mp4",
    frames: 240,
    rate: "15",
    averageFps: 15,
    expected: [0, 16, 32, 48, 64, 80, 96, 112, 127, 143, 159, 175, 191, 207, 223, 239],
    codec: [...x264, "-g", "100", "-bf", "3"],
  },
  // 10 groups of 5 frames over 7 ticks of 1/25 s, the last of them cut to its first 5 ticks: 50 frames in 2.72 s.
  {
    name: "variable.mp4",
    frames: 50,
    rate: "25",
    averageFps: 50 / 2.72,
    expected: [0, 16, 33, 49],
    codec: [...x264, "-g", "20", ...everyFifthGapTripled, "-video_track_timescale", "12800"],
  },
  // Matroska's header says 25 fps whatever the times are, and decord believes it.
  {
    name: "variable.mkv",
    frames: 60,
    rate: "25",
    averageFps: 25,
    expected: of60,
    codec: [...x264, "-g", "20", ...everyFifthGapTripled],
  },
  {
    name: "odd-size.mp4",
    frames: 60,
    rate: "30",
    width: 81,
    height: 47,
    averageFps: 30,
    expected: of60,
    codec: [...bFrames, "-pix_fmt", "yuv444p"],
  },
  {
    name: "odd-size-420.mkv",
    frames: 60,
    rate: "30",
    width: 97,
    height: 63,
    averageFps: 30,
    expected: of60,
    codec: mpeg4,
  },
  // Pixels of 4:3 stay the 80 x 48 that are stored, as with decord.
  {
    name: "wide-pixels.mp4",
    frames: 60,
    rate: "30",
    averageFps: 30,
    expected: of60,
    codec: [...bFrames, "-vf", "setsar=4/3"],
  },
  { name: "hevc.mp4", frames: 60, rate: "30", averageFps: 30, expected: of60, codec: x265("bframes=3") },
  {
    name: "hevc-10-bit.mp4",
    frames: 60,
    rate: "30",
    averageFps: 30,
    expected: of60,
    codec: [...x265("bframes=3"), "-pix_fmt", "yuv420p10le"],
  },
  {
    name: "vp9.webm",
    frames: 60,
    rate: "30",
    averageFps: 30,
    expected: of60,
    codec: ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"],
  },
  { name: "mpeg4.mp4", frames: 60, rate: "24", averageFps: 24, expected: of60, codec: mpeg4 },
  // AVI stores decoding times only: frames are counted instead.
  {
    name: "mpeg4.avi",
    pass: "recount",
    seek: "recount",
    frames: 60,
    rate: "24",
    averageFps: 24,
    expected: of60,
    codec: mpeg4,
  },
  {
    name: "offset.mkv",
    frames: 90,
    rate: "30",
    averageFps: 30,
    expected: of90,
    codec: [...bFrames, "-output_ts_offset", "5"],
  },
  // Times start at 1.4 s, and without an index seeking misses.
  {
    name: "stream.ts",
    seek: "pass",
    frames: 90,
    rate: "30",
    averageFps: 30,
    expected: of90,
    codec: [...bFrames, "-f", "mpegts"],
  },
  // Sought by decoding time: the next key frame is stored before the last B-frames in front of it.
  {
    name: "fragmented.mp4",
    frames: 90,
    rate: "30",
    averageFps: 30,
    expected: of90,
    codec: [...bFrames, "-movflags", "frag_keyframe+empty_moov"],
  },
  {
    name: "open-gop.mp4",
    frames: 60,
    rate: "30",
    averageFps: 30,
    expected: of60,
    codec: ["-c:v", "libx264", "-x264-params", "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0"],
  },
];

describe.each(rendered)("$name", (clip) => {
  const file = at(clip.name);
  beforeAll(() => writeNumberedClip(file, { codec: bFrames, ...clip }));

  test.each(["pass", "seek"] as const)("by %s: the frames with the rule's numbers", async (method) => {
    const video = await decodeVideo(file, rule, { method });
    expect(video.indices).toEqual(clip.expected);
    expect(numbers(video)).toEqual(clip.expected);
    expect([video.width, video.height]).toEqual([clip.width ?? 80, clip.height ?? 48]);
    expect(video.averageFps).toBeCloseTo(clip.averageFps, 6);
    expect(video.total).toBe(clip.frames);
    expect(video.method).toBe(clip[method] ?? method);
  });
});

// Encoders that not every ffmpeg has; the decoders are older and everywhere.
describe.each([
  ["hevc10.mp4", {}],
  ["hevc-open-gop.mp4", {}],
  ["h264-10.mp4", {}],
  ["av1.mp4", {}],
  ["av1-10.webm", {}],
  ["vp9.mp4", {}],
  ["vp9-altref.webm", {}],
] as [string, Partial<Record<"pass" | "seek", string>>][])("the committed %s", (name, found) => {
  test.each(["pass", "seek"] as const)("by %s: the frames with the rule's numbers", async (method) => {
    const video = await decodeVideo(fixture(name), rule, { method });
    expect([video.indices, numbers(video)]).toEqual([of60, of60]);
    expect([video.total, video.averageFps, video.width, video.height]).toEqual([60, 30, 96, 64]);
    expect(video.method).toBe(found[method] ?? method);
  });
});

test.each(["long-gop.mp4", "variable.mp4", "open-gop.mp4"])("%s: both ways give the same pixels", async (name) => {
  const [pass, seek] = await Promise.all(
    (["pass", "seek"] as const).map((method) => decodeVideo(at(name), rule, { method })),
  );
  expect(seek!.frames.map((f) => Buffer.from(f))).toEqual(pass!.frames.map((f) => Buffer.from(f)));
});

describe("a video stored on its side comes out upright, as with decord", () => {
  // The track header's matrix, as ISO 14496-12 has it: a, b, u, c, d, v with 16 bits after the point.
  const one = 0x10000;
  test.each([
    ["a quarter clockwise", [0, one, 0, -one, 0, 0], [48, 80], 90],
    ["upside down", [-one, 0, 0, 0, -one, 0], [80, 48], 180],
    ["a quarter against the clock", [0, -one, 0, one, 0, 0], [48, 80], 270],
  ] as const)("%s", async (name, matrix, size, turn) => {
    const bytes = Buffer.from(readFileSync(at("30.mp4")));
    const start = bytes.indexOf("tkhd") + 4 + 40; // track header, version 0
    for (const [i, value] of matrix.entries()) bytes.writeInt32BE(value, start + i * 4);
    const file = at(`${name}.mp4`);
    writeFileSync(file, bytes);
    for (const method of ["pass", "seek"] as const) {
      const { frames, width, height } = await decodeVideo(file, rule, { method });
      expect([width, height]).toEqual(size);
      expect(frames.map((f) => readFrame(f, width, height))).toEqual(of90.map((number) => ({ number, turn })));
    }
  });
});

describe("clips cut without decoding: what can be shown is counted from its first frame", () => {
  const fromEnd = ["-i", "30.mp4"];
  // [name, arguments around the input, frames that remain of 90 (of 60 in the open group), method]
  const cuts: [string, string[], number, VideoFrames["method"]][] = [
    // The frames from the key frame (12) up to 21 are stored but hidden by an edit list. decord 0.6.0 counts all 78.
    ["edit-list.mp4", ["-ss", "0.7", ...fromEnd, "-c", "copy"], 69, "pass"],
    // Matroska cannot hide: the clip begins at the key frame.
    ["cut.mkv", ["-ss", "0.7", ...fromEnd, "-c", "copy"], 78, "pass"],
    // Begins with frames that cannot be decoded, until the key frame 24: those are stored, and not counted.
    ["off-key.mp4", [...fromEnd, "-ss", "0.7", "-c", "copy", "-copyinkf"], 66, "recount"],
    ["off-key.mkv", [...fromEnd, "-ss", "0.7", "-c", "copy", "-copyinkf"], 66, "recount"],
    ["off-key.ts", [...fromEnd, "-ss", "0.5", "-c", "copy", "-copyinkf"], 66, "recount"],
  ];
  test.each(cuts)("%s", async (name, args, total, method) => {
    await ffmpeg(...args.map((arg) => (arg === "30.mp4" ? at(arg) : arg)), at(name));
    for (const wanted of ["pass", "seek"] as const) {
      const video = await decodeVideo(at(name), rule, { method: wanted });
      expect(video.total).toBe(total);
      expect(numbers(video)).toEqual(video.indices.map((n) => 90 - total + n));
      expect([video.indices[0], video.indices.at(-1)]).toEqual([0, total - 1]);
      expect(video.averageFps).toBeCloseTo(30, 1);
      expect(video.method).toBe(method === "recount" ? "recount" : wanted);
    }
  });

  test.each([
    ["hevc-cut.mkv", 36],
    ["hevc-cut.mp4", 33],
  ])("the committed %s, cut in an open group of pictures", async (name, total) => {
    const video = await decodeVideo(fixture(name), rule);
    expect(video.total).toBe(total);
    expect(numbers(video)).toEqual(video.indices.map((n) => 60 - total + n));
  });

  test("a transport stream that lost its first packets", async () => {
    const whole = readFileSync(at("stream.ts"));
    writeFileSync(at("lost.ts"), whole.subarray(188 * Math.ceil(whole.length / 188 / 6)));
    const video = await decodeVideo(at("lost.ts"), rule);
    expect(numbers(video)).toEqual(video.indices.map((n) => 90 - video.total + n));
    expect(video.total).toBeLessThan(90);
  });

  test("times before zero", async () => {
    const early = ["-output_ts_offset", "-1", "-avoid_negative_ts", "disabled"];
    await ffmpeg("-i", at("30.mp4"), "-c", "copy", ...early, at("negative.mkv"));
    const video = await decodeVideo(at("negative.mkv"), rule);
    expect([numbers(video), video.averageFps]).toEqual([of90, 30]);
  });
});
