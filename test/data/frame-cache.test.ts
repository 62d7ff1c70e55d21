import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { FrameCache } from "../../src/data/frame-cache.ts";
import { loadMedia } from "../../src/data/load-media.ts";
import type { Media } from "../../src/data/options.ts";
import { picture, temporaryFolder, writeNumberedClip } from "./helpers.ts";

let folder: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

const media: Media = { kind: "video", frames: 2, height: 28, width: 56, data: picture(28, 56, 2) };
const ENTRY_BYTES = media.data.length + 24;
const frames = { fps: 2, minFrames: 4, maxFrames: 16 };
const size = { factor: 28, minPixels: 784, maxPixels: 1e6 };
const entries = () => readdirSync(folder.path).sort();

test("what was put comes back, also by another cache on the same folder", async () => {
  await new FrameCache(folder.path, 1e9).put("k", media);
  expect(await new FrameCache(folder.path, 1e9).get("k")).toEqual(media);
  expect(await new FrameCache(folder.path, 1e9).get("other")).toBeNull();
  expect(entries()).toEqual(["k.frames"]); // no temporary file is left
});

test.each([
  { how: "cut off", damage: (file: string) => truncateSync(file, 500) },
  { how: "empty", damage: (file: string) => truncateSync(file, 0) },
  { how: "one byte changed", damage: (file: string) => writeFileSync(file, flip(readFileSync(file), 1000)) },
  { how: "header changed", damage: (file: string) => writeFileSync(file, flip(readFileSync(file), 8)) },
])("a damaged entry ($how) counts as absent and is removed", async ({ damage }) => {
  const cache = new FrameCache(folder.path, 1e9);
  await cache.put("k", media);
  damage(join(folder.path, "k.frames"));
  expect(await cache.get("k")).toBeNull();
  expect(entries()).toEqual([]);
});

function flip(bytes: Buffer, at: number): Buffer {
  bytes[at]! ^= 1;
  return bytes;
}

test("over the limit, the entries used longest ago go", async () => {
  const cache = new FrameCache(folder.path, 3.5 * ENTRY_BYTES);
  for (const [i, key] of ["a", "b", "c"].entries()) {
    await cache.put(key, media);
    utimesSync(join(folder.path, `${key}.frames`), i + 1, i + 1);
  }
  await cache.get("a"); // used just now
  await cache.put("d", media);
  expect(entries()).toEqual(["a.frames", "c.frames", "d.frames"]);
});

test("entries of earlier runs count too", async () => {
  await new FrameCache(folder.path, 1e9).put("old", media);
  utimesSync(join(folder.path, "old.frames"), 1, 1);
  const cache = new FrameCache(folder.path, 1.5 * ENTRY_BYTES);
  await cache.put("new", media);
  expect(entries()).toEqual(["new.frames"]);
});

test("the limit holds where several write", async () => {
  const limit = 8;
  const caches = Array.from({ length: 4 }, () => new FrameCache(folder.path, limit * ENTRY_BYTES));
  let most = 0;
  for (let i = 0; i < 10; i++) {
    for (const [writer, cache] of caches.entries()) {
      await cache.put(`${writer}-${i}`, media);
      most = Math.max(most, entries().length);
    }
  }
  expect(most).toBeLessThanOrEqual(limit);
});

test("what killed processes left unfinished goes, what is being written and what others have there stays", async () => {
  const [lost, fresh] = ["lost", "new"].map((key) => `${key}.${randomUUID()}.tmp`) as [string, string];
  for (const name of [lost, fresh, "not-ours.tmp"]) writeFileSync(join(folder.path, name), "half");
  for (const name of [lost, "not-ours.tmp"]) utimesSync(join(folder.path, name), 1, 1);
  await new FrameCache(folder.path, 1e9).put("k", media);
  expect(entries()).toEqual(["k.frames", fresh, "not-ours.tmp"]);
});

test("the key changes with the file, the frames asked for and the size", async () => {
  const file = join(folder.path, "v.mp4");
  writeFileSync(file, "one");
  utimesSync(file, 1, 1);
  const key = () => FrameCache.key(file, "video", frames, size);
  const first = await key();
  expect(await key()).toBe(first);
  const keys = new Set([first]);
  keys.add(await FrameCache.key(file, "video", { ...frames, maxFrames: 8 }, size));
  keys.add(await FrameCache.key(file, "video", frames, { ...size, resizedHeight: 56, resizedWidth: 56 }));
  keys.add(await FrameCache.key(file, "image", frames, size));
  utimesSync(file, 2, 2);
  keys.add(await key());
  writeFileSync(file, "more");
  utimesSync(file, 1, 1);
  keys.add(await key());
  expect(keys.size).toBe(6);
});

test("loadMedia decodes once, reads the cache then, and decodes again when the entry is damaged", async () => {
  const file = join(folder.path, "clip.mp4");
  await writeNumberedClip(file, { frames: 12, rate: "6" });
  const cacheFolder = join(folder.path, "cache");
  const request = { kind: "video", file, frames, size, cache: { folder: cacheFolder, limitBytes: 1e9 } } as const;
  const decoded = await loadMedia(request);
  expect([decoded.frames, decoded.height, decoded.width]).toEqual([4, 56, 84]);
  const entry = join(cacheFolder, readdirSync(cacheFolder)[0]!);
  const stored = readFileSync(entry);
  // A well-formed entry with other pixels proves that the second load did not decode.
  await new FrameCache(cacheFolder, 1e9).put(entry.slice(cacheFolder.length + 1, -".frames".length), {
    ...decoded,
    data: decoded.data.map(() => 7),
  });
  expect(new Set((await loadMedia(request)).data)).toEqual(new Set([7]));
  writeFileSync(entry, "damaged");
  expect(await loadMedia(request)).toEqual(decoded);
  expect(readFileSync(entry)).toEqual(stored);
});
