/** Decodes every media file of a data set once, in the worker pool and through the frame cache, and keeps nothing but sizes. */

import { GroveError } from "../errors.ts";
import type { Sample } from "../types.ts";
import { MediaPool } from "./media-pool.ts";
import type { DataOptions, SizeRule } from "./options.ts";
import { type MediaRef, mediaOf } from "./processor.ts";
import type { MediaSize } from "./prompt-length.ts";

const GIB = 2 ** 30;

/** A file that could be decoded, or why not. */
export type MediaFinding = { size: MediaSize } | { problem: "missing media" | "undecodable media"; message: string };

export const mediaKey = ({ kind, file }: MediaRef): string => `${kind}\0${file}`;

/**
 * @returns by `mediaKey`
 * @throws GroveError for what is not a file's fault: no ffmpeg, a cache folder that cannot be written
 */
export async function checkMedia(
  samples: readonly Sample[],
  config: DataOptions,
  size: SizeRule,
  onProgress?: (done: number, total: number) => void,
): Promise<Map<string, MediaFinding>> {
  const { fps, minFrames, maxFrames, cacheDir, cacheGib, workers } = config;
  const request = {
    frames: { fps, minFrames, maxFrames },
    size,
    cache: cacheGib > 0 ? { folder: cacheDir, limitBytes: cacheGib * GIB } : null,
  };
  const files = [...new Map(samples.flatMap(mediaOf).map((ref) => [mediaKey(ref), ref])).values()];
  const findings = new Map<string, MediaFinding>();
  const pool = new MediaPool(workers);
  let next = 0;
  const worker = async () => {
    for (let i = next++; i < files.length; i = next++) {
      const ref = files[i] as MediaRef;
      try {
        const { kind, frames, height, width } = await pool.load({ ...ref, ...request });
        findings.set(mediaKey(ref), { size: { kind, frames, height, width } });
      } catch (error) {
        findings.set(mediaKey(ref), findingOf(error, ref));
      }
      onProgress?.(findings.size, files.length);
    }
  };
  try {
    // One more than there are threads, so that none waits for this thread.
    await Promise.all(Array.from({ length: workers + 1 }, worker));
  } finally {
    await pool.close();
  }
  return findings;
}

function findingOf(error: unknown, { file }: MediaRef): MediaFinding {
  if (error instanceof GroveError && error.code !== "MEDIA") throw error;
  const message = (error as Error).message;
  const problem = message === `${file}: no such file` ? "missing media" : "undecodable media";
  return { problem, message };
}
