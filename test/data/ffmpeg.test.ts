import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { encodeWithFfmpeg, findFfmpeg, missingDecoder, runFfmpeg } from "../../src/data/ffmpeg.ts";

let folder: string;
let clip: string;

// An ffmpeg that closes its output well before it exits, as a busy machine makes it look.
beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), "grove-ffmpeg-"));
  clip = path.join(folder, "clip.mp4");
  const code = 'import("./src/data/ffmpeg.ts").then(async (m) => console.log((await m.findFfmpeg()).path))';
  const real = execFileSync(process.execPath, ["--import", "tsx", "-e", code], { encoding: "utf8" }).trim();
  const slow = path.join(folder, "slow-ffmpeg");
  writeFileSync(slow, `#!/bin/sh\n"${real}" "$@"\nstatus=$?\nexec >&-\nsleep 0.15\nexit $status\n`, { mode: 0o755 });
  process.env.FFMPEG_PATH = slow;
  await encodeWithFfmpeg(["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-pix_fmt", "yuv420p", clip]);
});
afterAll(() => rmSync(folder, { recursive: true }));

test("a process that ends long after its output is no failure", async () => {
  expect((await findFfmpeg()).path).toContain("slow-ffmpeg");
  const { stdout, stderr } = await runFfmpeg(clip, { input: [], output: ["-f", "rawvideo", "-pix_fmt", "rgb24"] });
  expect(stdout.length).toBe(20 * 64 * 48 * 3);
  expect(stderr).toContain("Stream #0");
});

test("a process that fails after its output is one, and its log tells", async () => {
  writeFileSync(clip, "not a video");
  const run = runFfmpeg(clip, { input: [], output: ["-f", "rawvideo"] });
  await expect(run).rejects.toThrow(/clip\.mp4: ffmpeg cannot read it\n[\s\S]*Invalid data/);
});

// Lines that ffmpeg 4.1 and 9.0 wrote.
test.each([
  ["Decoder (codec av1) not found for input stream #0:0", "av1"],
  ["[vist#0:0/av1 @ 0x55e3df752340] Decoding requested, but no decoder found for: av1", "av1"],
  [
    "    Stream #0:0(und): Video: none (vvc1 / 0x31637676), none(progressive), 96x64, 15 kb/s\nDecoder (codec none) not found for input stream #0:0",
    "vvc1",
  ],
  [
    "  Stream #0:0(und): Video: none (xyz1 / 0x317A7978), none, 96x64\n[vist#0:0/none @ 0x55e3df752340] Decoding requested, but no decoder found for: none",
    "xyz1",
  ],
  ["    Stream #0:0[0x100]: Unknown: none (3[0][0][0] / 0x0033)\nStream map '0:v:0' matches no streams.", "3[0][0][0]"],
  ["    Stream #0:0: Audio: aac (LC), 44100 Hz\nStream map '0:v:0' matches no streams.", undefined],
  ["moov atom not found", undefined],
])("%j lacks %s", (log, codec) => expect(missingDecoder(log)).toBe(codec));
