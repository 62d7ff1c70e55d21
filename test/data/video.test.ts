import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodeWithFfmpeg } from "../../src/data/ffmpeg.ts";
import { scanPackets } from "../../src/data/packets.ts";
import { decodeVideo } from "../../src/data/video.ts";
import { type ClipSpec, readFrameNumber, temporaryFolder, writeNumberedClip } from "./helpers.ts";

const rule = { fps: 2, minFrames: 4, maxFrames: 16 };
const folder = temporaryFolder();
afterAll(folder.remove);
const at = (name: string) => join(folder.path, name);

const x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv444p"];
const vfrFilter = "setpts='(N+floor(N/5)*2)/25/TB'"; // every fifth gap is three times as long
const vfr = ["-vf", vfrFilter, "-vsync", "vfr", "-video_track_timescale", "12800"];

const clips: (ClipSpec & { name: string; fps: number; expected: number[]; recount?: true; noSeek?: true })[] = [
  { name: "30.mp4", frames: 90, rate: "30", fps: 30, expected: [0, 18, 36, 53, 71, 89] },
  { name: "2997.mp4", frames: 90, rate: "30000/1001", fps: 30000 / 1001, expected: [0, 18, 36, 53, 71, 89] },
  { name: "25.mkv", frames: 100, rate: "25", fps: 25, expected: [0, 14, 28, 42, 57, 71, 85, 99] },
  {
    name: "long-gop.mp4",
    frames: 240,
    rate: "15",
    fps: 15,
    expected: [0, 16, 32, 48, 64, 80, 96, 112, 127, 143, 159, 175, 191, 207, 223, 239],
    codec: [...x264, "-g", "100", "-bf", "3"],
  },
  {
    name: "odd-size.mp4",
    frames: 60,
    rate: "30",
    width: 81,
    height: 47,
    fps: 30,
    expected: [0, 20, 39, 59],
  },
  { name: "three.mp4", frames: 3, rate: "30", fps: 30, expected: [0, 2] },
  {
    name: "mpeg4.mp4",
    frames: 60,
    rate: "24",
    fps: 24,
    expected: [0, 20, 39, 59],
    codec: ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"],
  },
  // AVI stores decoding times only: frames are counted instead.
  {
    name: "mpeg4.avi",
    recount: true,
    frames: 60,
    rate: "24",
    fps: 24,
    expected: [0, 20, 39, 59],
    codec: ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"],
  },
  {
    name: "offset.mkv",
    frames: 90,
    rate: "30",
    fps: 30,
    expected: [0, 18, 36, 53, 71, 89],
    codec: [...x264, "-g", "12", "-bf", "2", "-output_ts_offset", "5"],
  },
  // Times start at 1.4 s, and without an index seeking misses.
  {
    name: "stream.ts",
    noSeek: true,
    frames: 90,
    rate: "30",
    fps: 30,
    expected: [0, 18, 36, 53, 71, 89],
    codec: [...x264, "-g", "12", "-bf", "2", "-f", "mpegts"],
  },
  {
    name: "vp9.webm",
    frames: 50,
    rate: "25",
    fps: 25,
    expected: [0, 16, 33, 49],
    codec: ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"],
  },
  // 10 groups of 5 frames over 7 ticks of 1/25 s, the last of them cut to its first 5 ticks: 50 frames in 2.72 s.
  {
    name: "vfr.mp4",
    frames: 50,
    rate: "25",
    fps: 50 / 2.72,
    expected: [0, 16, 33, 49],
    codec: [...x264, "-g", "20", ...vfr],
  },
];

describe.each(clips)("$name", (clip) => {
  const file = at(clip.name);
  beforeAll(() => writeNumberedClip(file, clip));

  test.each(["pass", "seek"] as const)("by %s: the frames with the rule's numbers", async (method) => {
    const video = await decodeVideo(file, rule, { method });
    expect(video.indices).toEqual(clip.expected);
    expect(video.frames.map((frame) => readFrameNumber(frame, video.width, video.height))).toEqual(clip.expected);
    expect([video.width, video.height]).toEqual([clip.width ?? 80, clip.height ?? 48]);
    expect(video.averageFps).toBeCloseTo(clip.fps, 1);
    expect(video.total).toBe(clip.frames);
    expect(video.method).toBe(clip.recount ? "recount" : clip.noSeek ? "pass" : method);
  });
});

test("both ways give the same pixels", async () => {
  const [pass, seek] = await Promise.all(
    (["pass", "seek"] as const).map((method) => decodeVideo(at("long-gop.mp4"), rule, { method })),
  );
  expect(seek!.frames.map((f) => Buffer.from(f))).toEqual(pass!.frames.map((f) => Buffer.from(f)));
});

test("a long clip with many key frames is sought in, a short one decoded in one pass", async () => {
  // Frames are small, so that only a clip of many frames pays for starting processes.
  const long = at("seek.mp4");
  const size = ["-f", "lavfi", "-i", "color=gray:size=640x360:rate=30:duration=80"];
  await encodeWithFfmpeg(["-loglevel", "error", ...size, ...x264.slice(0, 4), "-g", "10", "-pix_fmt", "yuv420p", long]);
  expect((await decodeVideo(long, { ...rule, maxFrames: 4 })).method).toBe("seek");
  expect((await decodeVideo(at("30.mp4"), rule)).method).toBe("pass");
});

test("a clip that begins off a key frame: what a decoder shows is counted from its first frame", async () => {
  const whole = at("whole.ts");
  await writeNumberedClip(whole, { frames: 60, rate: "30", codec: [...x264, "-g", "20", "-bf", "0", "-f", "mpegts"] });
  const bytes = readFileSync(whole);
  const cut = at("off-key.ts");
  // Drop the first transport packets: the group of pictures from frame 0 loses its key frame.
  writeFileSync(cut, bytes.subarray(188 * Math.ceil(bytes.length / 188 / 6)));
  const video = await decodeVideo(cut, rule);
  const numbers = video.frames.map((frame) => readFrameNumber(frame, video.width, video.height));
  expect(numbers).toEqual(video.indices.map((n) => 60 - video.total + n));
  expect(video.total).toBeLessThan(60);
});

test("a cut by stream copy keeps hidden frames before its start: they are not counted", async () => {
  const cut = at("edit-list.mp4");
  await encodeWithFfmpeg(["-loglevel", "error", "-ss", "0.7", "-i", at("30.mp4"), "-c", "copy", cut]);
  const video = await decodeVideo(cut, rule);
  const numbers = video.frames.map((frame) => readFrameNumber(frame, video.width, video.height));
  expect(numbers).toEqual(video.indices.map((n) => 90 - video.total + n));
});

test("a rotated video comes out upright", async () => {
  const rotated = at("rotated.mp4");
  const bytes = Buffer.from(readFileSync(at("30.mp4")));
  const matrix = bytes.indexOf("tkhd") + 4 + 40; // of the track header, version 0
  for (const [i, value] of [0, 0x10000, 0, -0x10000, 0, 0].entries()) bytes.writeInt32BE(value, matrix + i * 4);
  writeFileSync(rotated, bytes);
  const video = await decodeVideo(rotated, rule);
  expect([video.width, video.height]).toEqual([48, 80]);
  const upright = await decodeVideo(at("30.mp4"), rule);
  const pixel = (frame: Uint8Array, width: number, x: number, y: number) => frame[(y * width + x) * 3]!;
  // 90 degrees clockwise: the left edge becomes the top.
  for (const x of [4, 20, 44, 76]) {
    expect(pixel(video.frames[3]!, 48, 24, x)).toBe(pixel(upright.frames[3]!, 80, x, 23));
  }
});

test("a 10-bit video gives 8-bit pixels", async () => {
  const file = at("ten-bit.mp4");
  await writeNumberedClip(file, {
    frames: 8,
    rate: "4",
    codec: ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le"],
  });
  const video = await decodeVideo(file, rule);
  expect(video.frames.map((frame) => readFrameNumber(frame, video.width, video.height))).toEqual([0, 2, 5, 7]);
});

describe("files that cannot be used", () => {
  test("one frame", async () => {
    await writeNumberedClip(at("one.mp4"), { frames: 1, rate: "30" });
    await expect(decodeVideo(at("one.mp4"), rule)).rejects.toThrow(/one\.mp4: has 1 frame, at least 2/);
  });

  test("missing", async () => {
    await expect(decodeVideo(at("nowhere.mp4"), rule)).rejects.toThrow(/nowhere\.mp4: no such file/);
  });

  test("no video in it", async () => {
    writeFileSync(at("text.mp4"), "not a video");
    await expect(decodeVideo(at("text.mp4"), rule)).rejects.toThrow(
      /text\.mp4: ffmpeg cannot read it\n[\s\S]*Invalid data/,
    );
  });

  test("sound only", async () => {
    const sine = ["-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "pcm_s16le"];
    await encodeWithFfmpeg(["-loglevel", "error", ...sine, at("sound.mkv")]);
    await expect(decodeVideo(at("sound.mkv"), rule)).rejects.toThrow(/sound\.mkv/);
  });

  test("cut off, with the index at the end and at the start", async () => {
    const bytes = readFileSync(at("30.mp4"));
    writeFileSync(at("cut.mp4"), bytes.subarray(0, bytes.length * 0.3));
    await expect(decodeVideo(at("cut.mp4"), rule)).rejects.toThrow(
      /cut\.mp4: ffmpeg cannot read it\n[\s\S]*moov atom not found/,
    );
    await encodeWithFfmpeg([
      "-loglevel",
      "error",
      "-i",
      at("30.mp4"),
      "-c",
      "copy",
      "-movflags",
      "+faststart",
      at("fast.mp4"),
    ]);
    const fast = readFileSync(at("fast.mp4"));
    writeFileSync(at("cut-fast.mp4"), fast.subarray(0, fast.length * 0.7));
    await expect(decodeVideo(at("cut-fast.mp4"), rule)).rejects.toThrow(/cut-fast\.mp4: is cut off/);
    // Matroska has no index to miss: what is there can be decoded, and would pass for a shorter video.
    await encodeWithFfmpeg(["-loglevel", "error", "-i", at("30.mp4"), "-c", "copy", at("whole.mkv")]);
    const whole = readFileSync(at("whole.mkv"));
    writeFileSync(at("cut.mkv"), whole.subarray(0, whole.length * 0.7));
    expect((await scanPackets(at("whole.mkv"))).pts.length).toBeGreaterThan(10);
    await expect(decodeVideo(at("cut.mkv"), rule)).rejects.toThrow(/cut\.mkv: is cut off/);
  });

  test("too slow", async () => {
    await expect(decodeVideo(at("30.mp4"), rule, { timeoutMs: 1 })).rejects.toThrow(
      /30\.mp4: ffmpeg took longer than 0\.001 s/,
    );
  });
});

test("a name with a colon and spaces is a file, not a protocol", async () => {
  const odd = at("http: a 'b'.mp4");
  writeFileSync(odd, readFileSync(at("three.mp4")));
  expect((await scanPackets(odd)).pts.length).toBe(3);
});
