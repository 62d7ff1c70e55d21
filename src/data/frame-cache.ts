/**
 * Decoded and resized pixels on disk, uint8: GRPO meets every video again each epoch, and decoding is the slow part of it. One file an entry,
 * named by what it depends on; several threads and processes may share a folder. An entry that is damaged counts as absent.
 */

import { createHash, randomUUID } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import { join, resolve } from "node:path";
import { crc32 } from "node:zlib";
import type { FrameRule, Media, SizeRule } from "./options.ts";

// Header: magic, kind, frames, height, width, CRC-32 of the pixels; then the pixels.
const MAGIC = 0x47465231; // "GFR1"
const HEADER_BYTES = 24;
const KINDS = ["image", "video"] as const;
/** To be raised when the same file under the same rules gives other pixels than before: older entries are then not found. */
const PIXEL_RULES = 2;
const SUFFIX = ".frames";
const UNFINISHED = ".tmp";
/** Of put(): the folder may hold files of other programs. */
const UNFINISHED_NAME = /\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.tmp$/;
/** An entry is written in seconds: one that is still unfinished after so long was a killed process's. */
const ABANDONED_MS = 3_600_000;
/** The folder is looked at again after own writes of this share of the limit: other threads and processes write, too. */
const RECOUNT = 1 / 64;
/** Eviction goes this far below the limit, so that it does not run again for every new entry. */
const EVICT_TO = 0.9;

export class FrameCache {
  readonly #folder: string;
  readonly #limitBytes: number;
  #counted = Number.POSITIVE_INFINITY; // bytes in the folder when it was last looked at
  #written = 0; // by ourselves since then

  constructor(folder: string, limitBytes: number) {
    this.#folder = folder;
    this.#limitBytes = limitBytes;
  }

  /** Name of the entry for a media file as it is now (path, size, time of change) under these rules. */
  static async key(file: string, kind: Media["kind"], frames: FrameRule, size: SizeRule): Promise<string> {
    const { size: bytes, mtimeMs } = await stat(file);
    const { fps, minFrames, maxFrames } = frames;
    const { factor, minPixels, maxPixels, resizedHeight, resizedWidth } = size;
    const rule = kind === "video" ? [fps, minFrames, maxFrames] : [];
    const parts = [
      PIXEL_RULES,
      resolve(file),
      bytes,
      mtimeMs,
      kind,
      rule,
      factor,
      minPixels,
      maxPixels,
      resizedHeight,
      resizedWidth,
    ];
    return createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 40);
  }

  /** The entry, or null where there is none or a damaged one (which is removed). */
  async get(key: string): Promise<Media | null> {
    const path = this.#path(key);
    let bytes: Buffer;
    try {
      bytes = await readFile(path);
    } catch {
      return null;
    }
    const media = decodeEntry(bytes);
    if (media === null) {
      await rm(path, { force: true });
      return null;
    }
    const now = new Date();
    await utimes(path, now, now).catch(() => {}); // the clock of eviction; another process may have evicted it just now
    return media;
  }

  /**
   * Writes an entry under a temporary name and renames it, then drops the entries used longest ago while the folder is over its limit. It is seen to be that
   * by the time that each of the threads that write here has added 1/64 of the limit.
   */
  async put(key: string, media: Media): Promise<void> {
    const header = Buffer.alloc(HEADER_BYTES);
    const { frames, height, width, data } = media;
    for (const [i, value] of [MAGIC, KINDS.indexOf(media.kind), frames, height, width, crc32(data)].entries()) {
      header.writeUInt32LE(value, i * 4);
    }
    await mkdir(this.#folder, { recursive: true });
    const temporary = join(this.#folder, `${key}.${randomUUID()}${UNFINISHED}`);
    try {
      const file = await open(temporary, "wx");
      try {
        await file.writev([header, data]);
      } finally {
        await file.close();
      }
      await rename(temporary, this.#path(key));
    } catch (cause) {
      await rm(temporary, { force: true });
      throw cause;
    }
    this.#written += HEADER_BYTES + data.length;
    if (this.#written > RECOUNT * this.#limitBytes || this.#counted + this.#written > this.#limitBytes)
      await this.#evict();
  }

  /** Counts what is in the folder, and makes room where that is too much. */
  async #evict(): Promise<void> {
    this.#written = 0;
    const entries = (await this.#list()).sort((a, b) => a.usedMs - b.usedMs);
    let bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
    if (bytes > this.#limitBytes) {
      for (const entry of entries) {
        if (bytes <= this.#limitBytes * EVICT_TO) break;
        await rm(entry.path, { force: true });
        bytes -= entry.bytes;
      }
    }
    this.#counted = bytes;
  }

  async #list(): Promise<{ path: string; bytes: number; usedMs: number }[]> {
    const all = await readdir(this.#folder);
    await Promise.all(all.filter((name) => UNFINISHED_NAME.test(name)).map((name) => this.#removeAbandoned(name)));
    const names = all.filter((name) => name.endsWith(SUFFIX));
    const entries = await Promise.all(
      names.map(async (name) => {
        const path = join(this.#folder, name);
        const info = await stat(path).catch(() => null); // evicted by another process meanwhile
        return info === null ? [] : [{ path, bytes: info.size, usedMs: info.mtimeMs }];
      }),
    );
    return entries.flat();
  }

  async #removeAbandoned(name: string): Promise<void> {
    const path = join(this.#folder, name);
    const info = await stat(path).catch(() => null); // finished meanwhile
    if (info !== null && Date.now() - info.mtimeMs > ABANDONED_MS) await rm(path, { force: true });
  }

  #path(key: string): string {
    return join(this.#folder, key + SUFFIX);
  }
}

function decodeEntry(bytes: Buffer): Media | null {
  if (bytes.length < HEADER_BYTES || bytes.readUInt32LE(0) !== MAGIC) return null;
  const [kindIndex, frames, height, width, checksum] = [4, 8, 12, 16, 20].map((at) => bytes.readUInt32LE(at)) as Five;
  const kind = KINDS[kindIndex];
  const data = new Uint8Array(bytes.subarray(HEADER_BYTES)); // a copy with a buffer of its own, so that it can be transferred
  if (kind === undefined || data.length !== frames * height * width * 3 || crc32(data) !== checksum) return null;
  return { kind, frames, height, width, data };
}

type Five = [number, number, number, number, number];
