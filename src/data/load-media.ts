/** One media file to resized pixels, through the cache where there is one, and to patches. This is what a worker thread runs. */

import { ConfigError, MediaError } from "../errors.ts";
import { FrameCache } from "./frame-cache.ts";
import { decodeImage } from "./image.ts";
import type { FrameRule, Media, SizeRule } from "./options.ts";
import { cutPatches, type PatchRule, type Picture } from "./patches.ts";
import { resizeBicubic, targetSize } from "./resize.ts";
import { decodeVideo } from "./video.ts";

export interface MediaRequest {
  kind: Media["kind"];
  file: string;
  frames: FrameRule;
  size: SizeRule;
  cache: { folder: string; limitBytes: number } | null;
}

/** A file to the patches of a prompt: the cache holds pixels, a quarter of their size. */
export async function loadPicture(request: MediaRequest, rule: PatchRule): Promise<Picture> {
  return { kind: request.kind, input: cutPatches(await loadMedia(request), rule) };
}

const caches = new Map<string, FrameCache>();

/** @throws MediaError for a missing, broken or too short file */
export async function loadMedia(request: MediaRequest): Promise<Media> {
  if (request.cache === null) return decode(request);
  const { folder, limitBytes } = request.cache;
  const cache = caches.get(folder) ?? new FrameCache(folder, limitBytes);
  caches.set(folder, cache);
  const key = await FrameCache.key(request.file, request.kind, request.frames, request.size).catch((cause) => {
    throw new MediaError(request.file, cause.code === "ENOENT" ? "no such file" : "cannot be read", {}, cause);
  });
  const cached = await cache.get(key);
  if (cached !== null) return cached;
  const media = await decode(request);
  await cache.put(key, media).catch((cause) => {
    throw new ConfigError(
      `data.cacheDir: cannot write to ${folder} (${cause.message}); name another folder or set data.cacheGib=0`,
    );
  });
  return media;
}

/** The seed resizes video frames with torchvision and images with PIL, so do we. */
async function decode({ kind, file, frames: rule, size }: MediaRequest): Promise<Media> {
  if (kind === "image") {
    const { height, width, data } = await decodeImage(file);
    const [h, w] = targetSize(height, width, size, file);
    return { kind, frames: 1, height: h, width: w, data: resizeBicubic(data, [height, width], [h, w], "pil") };
  }
  const { height, width, frames } = await decodeVideo(file, rule);
  const [h, w] = targetSize(height, width, size, file);
  const data = new Uint8Array(frames.length * h * w * 3);
  for (const [i, frame] of frames.entries()) {
    data.set(resizeBicubic(frame, [height, width], [h, w], "torchvision"), i * h * w * 3);
  }
  return { kind, frames: frames.length, height: h, width: w, data };
}
