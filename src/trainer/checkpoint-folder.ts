/**
 * Checkpoints as folders of a run: written, found, judged by their manifest. Knows no tensor, so that a thread without the engine can write
 * one (checkpoint-worker.ts). What is in them: checkpoint.ts.
 */

import {
  closeSync,
  existsSync,
  fdatasyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import { crc32 } from "node:zlib";
import type { BestRule } from "../config/best-checkpoints.ts";
import { CheckpointError } from "../errors.ts";
import { bestOf, type CheckpointMetric, metricOf, pointToBest, type RatedCheckpoint } from "./best-checkpoint.ts";
import { replaceFile, replaceFolder } from "./files.ts";

const MANIFEST = "manifest.json";

/** Moves when a checkpoint written today could not be read by older code, or the other way round. */
export const FORMAT = 1;

/** The hidden name of a checkpoint while it is written (replaceFolder) or removed; one that is still there later was never finished. */
const HALF_WRITTEN = /^\.checkpoint-\d+\./;

/** Where a rank that is not the first writes its part, before the first one moves it into the checkpoint; with two dots while it is written. */
const PART = /^\.\.?part-(\d+)-\d+/;

export interface Manifest {
  format: number;
  files: Record<string, { bytes: number; crc32: number }>;
  /** How good it is; not there where its step had no such number. */
  metric?: CheckpointMetric;
}

/** A file of a checkpoint by its path in it: its bytes, or the file whose bytes it takes. */
export type FileToWrite = { name: string; parts: Iterable<Uint8Array> } | { name: string; copyOf: string };

export interface CheckpointToWrite {
  runDir: string;
  step: number;
  files: FileToWrite[];
  /** The newest complete checkpoints that stay, this one counted. */
  keepLast: number;
  /** Which others stay; default: none. */
  best?: BestRule;
  /** This one's number by that rule. */
  value?: number;
  /** What other ranks have written already, on the same file system. */
  parts?: WrittenPart[];
}

/** Files of a checkpoint that one rank of several writes. */
export interface PartToWrite {
  runDir: string;
  step: number;
  rank: number;
  files: FileToWrite[];
}

export interface WrittenPart {
  folder: string;
  files: Manifest["files"];
}

/**
 * Writes a checkpoint, lets `best` point to the best one, then removes all complete ones but the newest and the best, and what killed processes left
 * half-written. Returns its folder. A process killed on the way leaves more checkpoints than stay, never fewer.
 * @throws CheckpointError when a file cannot be written; nothing of the checkpoint stays then.
 */
export function writeCheckpoint(checkpoint: CheckpointToWrite): string {
  const { runDir, step, files, keepLast, best, parts = [] } = checkpoint;
  const folder = path.join(runDir, `checkpoint-${step}`);
  try {
    replaceFolder(folder, (temporary) => {
      const written = writeFiles(temporary, files);
      for (const part of parts) {
        for (const name of Object.keys(part.files))
          renameSync(path.join(part.folder, name), path.join(temporary, name));
        written.push(...Object.entries(part.files));
      }
      const metric = best && metricOf(best, checkpoint.value);
      const manifest: Manifest = {
        format: FORMAT,
        files: Object.fromEntries(written.sort(byName)),
        ...(metric && { metric }),
      };
      replaceFile(path.join(temporary, MANIFEST), JSON.stringify(manifest, null, 1));
    });
    const complete = completeCheckpoints(runDir);
    const chosen = best === undefined ? [] : bestOf(complete, best);
    pointToBest(runDir, chosen[0]); // before what it points to now may go
    const kept = new Set([...complete.slice(-keepLast), ...chosen]);
    // Under a hidden name first: a process killed meanwhile leaves no folder that looks like a checkpoint.
    for (const one of complete) {
      if (!kept.has(one)) renameSync(one.folder, path.join(runDir, `.checkpoint-${one.step}.old`));
    }
    for (const name of readdirSync(runDir)) {
      const part = PART.exec(name)?.[1]; // later ones may be on their way
      if (HALF_WRITTEN.test(name) || (part !== undefined && Number(part) <= step))
        rmSync(path.join(runDir, name), { recursive: true });
    }
  } catch (error) {
    for (const part of parts) rmSync(part.folder, { recursive: true, force: true });
    throw asCheckpointError(folder, error);
  }
  return folder;
}

/** Writes into a complete checkpoint how good it is, and lets `best` point to the best one. @throws CheckpointError when it cannot be written */
export function rateCheckpoint(runDir: string, step: number, best: BestRule, value: number | undefined): void {
  const folder = path.join(runDir, `checkpoint-${step}`);
  const metric = metricOf(best, value);
  if (metric === undefined || best.count === 0 || !isComplete(folder)) return;
  try {
    replaceFile(path.join(folder, MANIFEST), JSON.stringify({ ...readManifest(folder), metric }, null, 1));
    pointToBest(runDir, bestOf(completeCheckpoints(runDir), best)[0]);
  } catch (error) {
    throw asCheckpointError(folder, error);
  }
}

/** Writes a rank's part of a checkpoint to a place of its own. @throws CheckpointError when a file cannot be written */
export function writePart({ runDir, step, rank, files }: PartToWrite): WrittenPart {
  const folder = path.join(runDir, `.part-${step}-${rank}`);
  try {
    let written: WrittenPart["files"] = {};
    replaceFolder(folder, (temporary) => {
      written = Object.fromEntries(writeFiles(temporary, files));
    });
    return { folder, files: written };
  } catch (error) {
    throw asCheckpointError(folder, error);
  }
}

function writeFiles(folder: string, files: readonly FileToWrite[]): [name: string, Manifest["files"][string]][] {
  return files.map((file) => [file.name, writeFile(path.join(folder, file.name), file)]);
}

/** What the operating system refuses, as an error of the checkpoint; anything else as it is. */
function asCheckpointError(folder: string, error: unknown): unknown {
  if (!(error instanceof Error && "syscall" in error && "code" in error)) return error;
  return new CheckpointError(folder, `could not be written: ${error.message}`, { code: error.code }, error);
}

/** The newest checkpoint of a run that is complete (its manifest and every file of it, by size), or undefined. */
export function latestCheckpoint(runDir: string): string | undefined {
  return listCheckpoints(runDir).findLast(({ folder }) => isComplete(folder))?.folder;
}

/** @throws CheckpointError when there is none, or it is not JSON. */
export function readManifest(folder: string): Manifest {
  const file = path.join(folder, MANIFEST);
  if (!existsSync(file))
    throw new CheckpointError(folder, `has no ${MANIFEST}: it is no checkpoint, or was copied in part`);
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new CheckpointError(file, "is not valid JSON", {}, error);
  }
}

function completeCheckpoints(runDir: string): RatedCheckpoint[] {
  return listCheckpoints(runDir)
    .filter(({ folder }) => isComplete(folder))
    .map((one) => {
      const { metric } = readManifest(one.folder);
      return { ...one, ...(metric && { metric }) };
    });
}

function listCheckpoints(runDir: string): { step: number; folder: string }[] {
  if (!existsSync(runDir)) return [];
  return readdirSync(runDir)
    .flatMap((name) => {
      const step = /^checkpoint-(\d+)$/.exec(name)?.[1];
      return step === undefined ? [] : [{ step: Number(step), folder: path.join(runDir, name) }];
    })
    .sort((a, b) => a.step - b.step);
}

function isComplete(folder: string): boolean {
  if (!existsSync(path.join(folder, MANIFEST))) return false;
  return Object.entries(readManifest(folder).files).every(([file, { bytes }]) => {
    const found = statSync(path.join(folder, file), { throwIfNoEntry: false });
    return found?.size === bytes;
  });
}

const PIECE_BYTES = 2 ** 22; // read by the checksum and then, from the processor's cache, by the write
/** So many bytes at most wait in the page cache: more would make other files' flushes, and the end of this one, wait for them. */
const FLUSH_BYTES = 2 ** 28;

/** Writes a file in one pass. It is flushed but for the last bytes and its name; replaceFolder does that. */
function writeFile(target: string, file: FileToWrite): Manifest["files"][string] {
  mkdirSync(path.dirname(target), { recursive: true });
  const descriptor = openSync(target, "w");
  let bytes = 0;
  let crc = 0;
  let unflushed = 0;
  try {
    for (const part of "parts" in file ? file.parts : [readFileSync(file.copyOf)]) {
      for (let begin = 0; begin < part.length; begin += PIECE_BYTES) {
        const piece = part.subarray(begin, begin + PIECE_BYTES);
        crc = crc32(piece, crc);
        for (let done = 0; done < piece.length; ) done += writeSync(descriptor, piece, done);
        unflushed += piece.length;
        if (unflushed < FLUSH_BYTES) continue;
        fdatasyncSync(descriptor);
        unflushed = 0;
      }
      bytes += part.length;
    }
  } finally {
    closeSync(descriptor);
  }
  return { bytes, crc32: crc };
}

function byName([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number {
  return a < b ? -1 : 1;
}
