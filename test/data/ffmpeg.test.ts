import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { encodeWithFfmpeg, findFfmpeg, runFfmpeg } from "../../src/data/ffmpeg.ts";

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
