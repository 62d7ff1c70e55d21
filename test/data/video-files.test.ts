import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodeWithFfmpeg } from "../../src/data/ffmpeg.ts";
import { scanPackets } from "../../src/data/packets.ts";
import { decodeVideo } from "../../src/data/video.ts";
import { MediaError } from "../../src/errors.ts";
import { readFrameNumber, temporaryFolder, writeNumberedClip } from "./helpers.ts";

const rule = { fps: 2, minFrames: 4, maxFrames: 16 };
const folder = temporaryFolder();
afterAll(folder.remove);
const at = (name: string) => join(folder.path, name);
const ffmpeg = (...args: string[]) => encodeWithFfmpeg(["-loglevel", "error", ...args]);
const of90 = [0, 18, 36, 53, 71, 89];

beforeAll(() => writeNumberedClip(at("30.mp4"), { frames: 90, rate: "30" }));

async function numbers(file: string): Promise<number[]> {
  const { frames, width, height } = await decodeVideo(file, rule);
  return frames.map((frame) => readFrameNumber(frame, width, height));
}

describe("files that cannot be used are MediaErrors that name them", () => {
  const refused = async (name: string, problem: RegExp) => {
    const failure = await decodeVideo(at(name), rule).catch((error) => error);
    expect(failure).toBeInstanceOf(MediaError);
    expect(failure.message.startsWith(`${at(name)}: `)).toBe(true);
    expect(failure.message).toMatch(problem);
  };

  test("one frame", async () => {
    await writeNumberedClip(at("one.mp4"), { frames: 1, rate: "30" });
    await refused("one.mp4", /has 1 frame, at least 2 are needed$/);
  });

  test.each([
    ["empty.mp4", ""],
    ["text.mp4", "not a video"],
    ["zeros.mp4", "\0".repeat(4096)],
  ])("%s", async (name, bytes) => {
    writeFileSync(at(name), bytes);
    await refused(name, /ffmpeg cannot read it\n[\s\S]*(Invalid data|does not contain any stream)/);
  });

  test("missing, a dangling link, a folder", async () => {
    symlinkSync(at("gone.mp4"), at("dangling.mp4"));
    mkdirSync(at("folder.mp4"));
    await refused("nowhere.mp4", /no such file/);
    await refused("dangling.mp4", /no such file/);
    await refused("folder.mp4", /ffmpeg cannot read it\n[\s\S]*Is a directory/);
  });

  test("sound only", async () => {
    await ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "pcm_s16le", at("sound.mkv"));
    await refused("sound.mkv", /matches no streams/);
  });

  test("a codec that this ffmpeg does not know", async () => {
    const bytes = readFileSync(at("30.mp4"));
    bytes.write("xyz1", bytes.indexOf("avc1", bytes.indexOf("stsd")), "latin1");
    writeFileSync(at("unknown.mp4"), bytes);
    await refused(
      "unknown.mp4",
      /this ffmpeg has no decoder for its codec xyz1; install a newer one or set FFMPEG_PATH/,
    );
  });

  test("cut off, with the index at the end and at the start", async () => {
    const cut = (from: string, name: string, share: number) => {
      const bytes = readFileSync(at(from));
      writeFileSync(at(name), bytes.subarray(0, bytes.length * share));
    };
    cut("30.mp4", "cut.mp4", 0.3);
    await refused("cut.mp4", /ffmpeg cannot read it\n[\s\S]*moov atom not found/);
    await ffmpeg("-i", at("30.mp4"), "-c", "copy", "-movflags", "+faststart", at("fast.mp4"));
    cut("fast.mp4", "cut-fast.mp4", 0.7);
    await refused("cut-fast.mp4", /is cut off/);
    // Matroska has no index to miss: what is there can be decoded, and would pass for a shorter video.
    await ffmpeg("-i", at("30.mp4"), "-c", "copy", at("whole.mkv"));
    cut("whole.mkv", "cut.mkv", 0.7);
    expect((await scanPackets(at("whole.mkv"))).pts.length).toBe(90);
    await refused("cut.mkv", /is cut off/);
  });

  test("too slow", async () => {
    const decoding = decodeVideo(at("30.mp4"), rule, { timeoutMs: 1 });
    await expect(decoding).rejects.toThrow(/30\.mp4: ffmpeg took longer than 0\.001 s/);
  });
});

describe("headers that lie about the number of frames or the duration: what is stored counts", () => {
  test("AVI that claims ten times its frames", async () => {
    await ffmpeg("-i", at("30.mp4"), "-c:v", "mpeg4", "-q:v", "2", at("lie.avi"));
    const bytes = readFileSync(at("lie.avi"));
    bytes.writeUInt32LE(900, bytes.indexOf("avih") + 8 + 16); // dwTotalFrames
    bytes.writeUInt32LE(900, bytes.indexOf("strh") + 8 + 32); // dwLength of the stream
    writeFileSync(at("lie.avi"), bytes);
    const video = await decodeVideo(at("lie.avi"), rule);
    expect([video.total, video.indices]).toEqual([90, of90]);
    expect(await numbers(at("lie.avi"))).toEqual(of90);
  });

  test.each([30, 0.1])("MP4 whose headers claim %d times its duration", async (factor) => {
    const bytes = readFileSync(at("30.mp4"));
    for (const [box, offset] of [
      ["mvhd", 16],
      ["mdhd", 16],
    ] as const) {
      const position = bytes.indexOf(box) + 4 + offset;
      bytes.writeUInt32BE(Math.round(bytes.readUInt32BE(position) * factor), position);
    }
    writeFileSync(at("lie.mp4"), bytes);
    const video = await decodeVideo(at("lie.mp4"), rule);
    expect([video.total, video.averageFps, video.indices]).toEqual([90, 30, of90]);
    expect(await numbers(at("lie.mp4"))).toEqual(of90);
  });

  test("Matroska that claims a thousandth of its duration", async () => {
    await ffmpeg("-i", at("30.mp4"), "-c", "copy", at("lie.mkv"));
    const bytes = readFileSync(at("lie.mkv"));
    const duration = bytes.indexOf(Buffer.from([0x44, 0x89, 0x88])) + 3; // EBML: Duration, 8 bytes
    expect(bytes.readDoubleBE(duration)).toBeCloseTo(3000, -2);
    bytes.writeDoubleBE(3, duration);
    writeFileSync(at("lie.mkv"), bytes);
    const video = await decodeVideo(at("lie.mkv"), rule);
    expect([video.total, video.indices]).toEqual([90, of90]);
  });
});

test.each([
  "http: a 'b'.mp4",
  "-i.mp4",
  'double "quotes".mp4',
  "100% %d %03d.mp4",
  "ünï 漢字 🎬.mp4",
  "back\\slash;&$(id)`id`.mp4",
  "two\nlines.mp4",
  "[0:v]:file,filter=1.mp4",
  "no-suffix",
])("a file may be called %j", async (name) => {
  writeFileSync(at(name), readFileSync(at("30.mp4")));
  expect(await numbers(at(name))).toEqual(of90);
});

test.each([
  "-i",
  "http:b.mp4",
  "concat:a|b",
  "%d.mp4",
])("a file in the working folder may be called %j", async (name) => {
  writeFileSync(at(name), readFileSync(at("30.mp4")));
  const before = process.cwd();
  process.chdir(folder.path);
  try {
    expect(await numbers(name)).toEqual(of90);
  } finally {
    process.chdir(before);
  }
});

test("a symbolic link, also to a folder", async () => {
  symlinkSync(at("30.mp4"), at("link.mp4"));
  symlinkSync(folder.path, at("folder-link"));
  expect(await numbers(at("link.mp4"))).toEqual(of90);
  expect(await numbers(at("folder-link/30.mp4"))).toEqual(of90);
});
