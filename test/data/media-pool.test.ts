import { execFile } from "node:child_process";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";
import { afterAll, expect, test, vi } from "vitest";
import { loadMedia } from "../../src/data/load-media.ts";
import { MediaPool } from "../../src/data/media-pool.ts";
import { cutPatches } from "../../src/data/patches.ts";
import { temporaryFolder, writeNumberedClip } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
const clip = join(folder.path, "clip.mp4");
const request = {
  kind: "video",
  file: clip,
  frames: { fps: 2, minFrames: 4, maxFrames: 16 },
  size: { factor: 28, minPixels: 784, maxPixels: 1e6 },
  cache: null,
} as const;

test("a worker's pixels are those of a direct call; errors keep their class and file", async () => {
  await writeNumberedClip(clip, { frames: 12, rate: "6" });
  const pool = new MediaPool(2);
  try {
    const [first, second] = await Promise.all([pool.load(request), pool.load(request)]);
    expect(first).toEqual(await loadMedia(request));
    expect(second).toEqual(first);
    const rule = { patchSize: 14, temporalPatch: 2, merge: 2, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4] } as const;
    const picture = await pool.loadPicture(request, rule);
    expect(picture).toEqual({ kind: "video", input: cutPatches(first, rule) });
    const missing = pool.load({ ...request, file: join(folder.path, "nowhere.mp4") });
    await expect(missing).rejects.toMatchObject({
      name: "MediaError",
      message: `${join(folder.path, "nowhere.mp4")}: no such file`,
    });
  } finally {
    await pool.close();
  }
});

test("decoding and resizing leave the calling thread free", async () => {
  // About half a second of resizing, which would be one long silence in the calling thread.
  const large = join(folder.path, "large.mp4");
  await writeNumberedClip(large, {
    frames: 8,
    rate: "4",
    width: 960,
    height: 540,
    codec: ["-c:v", "mpeg4", "-q:v", "5"],
  });
  const heavy = { ...request, file: large, size: { factor: 28, minPixels: 1e6, maxPixels: 2e6 } };
  const longestSilence = async (work: () => Promise<unknown>) => {
    let last = performance.now();
    let longest = 0;
    const beat = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 5);
    await work();
    longest = Math.max(longest, performance.now() - last); // a silence to the end has no beat after it
    clearInterval(beat);
    return longest;
  };
  const pool = new MediaPool(1);
  try {
    await pool.load(request); // the thread starts
    const direct = await longestSilence(() => loadMedia(heavy));
    // The best of three: on a busy machine any thread may have to wait.
    const tries = [];
    for (let i = 0; i < 3; i++) tries.push(await longestSilence(() => pool.load(heavy)));
    const pooled = Math.min(...tries);
    expect(direct).toBeGreaterThan(100);
    expect(pooled).toBeLessThan(direct / 2);
  } finally {
    await pool.close();
  }
});

test("what no other file would mend keeps its code: no ffmpeg, a cache that cannot be written", async () => {
  await writeNumberedClip(clip, { frames: 12, rate: "6" });
  const inTheWay = join(folder.path, "file");
  writeFileSync(inTheWay, "");
  vi.stubEnv("FFMPEG_PATH", "/no/such/ffmpeg");
  const without = new MediaPool(1);
  const first = without.load(request);
  await expect(first).rejects.toMatchObject({ code: "FFMPEG", message: expect.stringContaining("/no/such/ffmpeg") });
  vi.unstubAllEnvs();
  const pool = new MediaPool(1);
  try {
    const cache = { folder: join(inTheWay, "cache"), limitBytes: 1e6 };
    const message = expect.stringMatching(/^data\.cacheDir: cannot write to .*file\/cache/);
    await expect(pool.load({ ...request, cache })).rejects.toMatchObject({ code: "CONFIG", message });
  } finally {
    await Promise.all([without.close(), pool.close()]);
  }
});

test("the pool runs from a JavaScript bundle with its worker beside it", async () => {
  const source = (name: string) => fileURLToPath(new URL(`../../src/data/${name}`, import.meta.url));
  const out = join(folder.path, "bundle");
  await build({
    entryPoints: { main: source("media-pool.ts"), "media-worker": source("media-worker.ts") },
    outdir: out,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    packages: "external",
    logLevel: "error",
  });
  symlinkSync(fileURLToPath(new URL("../../node_modules", import.meta.url)), join(out, "node_modules"));
  writeFileSync(join(out, "package.json"), `{"type":"module"}`);
  writeFileSync(
    join(out, "run.js"),
    `import { MediaPool } from "./main.js";
     const pool = new MediaPool(1);
     const { frames, height, width } = await pool.load(${JSON.stringify(request)});
     await pool.close();
     console.log(frames, height, width);`,
  );
  const { stdout } = await promisify(execFile)(process.execPath, ["run.js"], { cwd: out });
  expect(stdout.trim()).toBe("4 56 84");
});
