/** The full settings of an evaluation, written beside its results: what decides an answer, and what it ran on. */

import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import path from "node:path";
import type { Config } from "../config/schema.ts";
import { findFfmpeg } from "../data/ffmpeg.ts";
import { seedPrompt } from "../data/question.ts";

/** Everything that decides an answer. Two evaluations with the same may share a folder of answers. */
export interface DecidingSettings {
  model: {
    path: string;
    init: Config["model"]["init"];
    weights: string;
    files: string;
    adapter?: string; // and its files, where one is merged
    adapterFiles?: string;
  };
  seed: number;
  dtype: Config["dtype"];
  /** Frames, pixels, limits, and the files of questions with their layout. */
  data: Record<string, unknown>;
  questions: string;
  promptTemplate: string;
  /** Without batchSize, on which an answer depends by rounding at most: who ran out of memory goes on with fewer at a time. */
  eval: Omit<Config["eval"], "batchSize" | "consistency">;
  compat: Pick<Config["compat"], "firstLetterReward">;
}

/** What the evaluation ran on. It may change the last bits of a logit and so, rarely, an answer. */
export interface RunSettings {
  device: string;
  deviceName: string;
  threads: number;
  processes?: number;
  batchSize: number;
  onBadSample: Config["data"]["onBadSample"];
  versions: { grove: string; node: string; libtorch: string; ffmpeg: string };
}

/**
 * Settings that decide an answer. Weights by the headers of their safetensors files; those and every other file of the model folder, and
 * the files of questions, also by size and modification time: a 7B folder is looked at in milliseconds.
 */
export function decidingSettings(config: Config): DecidingSettings {
  const { workers: _w, prefetch: _p, cacheDir: _d, cacheGib: _g, train: _t, eval: sources, ...wanted } = config.data;
  // What happens to a question that cannot be asked changes no answer to another: who met one goes on with "skip".
  const { onBadSample: _o, maxBadSamples: _m, ...data } = wanted;
  const { batchSize: _b, consistency: _c, ...evaluation } = config.eval;
  const { path: folder, init, adapter } = config.model;
  const files = modelFiles(folder);
  const questions = Object.fromEntries(
    // The benchmark's name changes what is printed beside an answer, not the answer.
    Object.entries(sources).map(([level, { benchmark: _b, ...source }]) => [level, source]),
  );
  return {
    model: {
      ...{ path: folder, init, weights: hashOf(files.filter(isWeights).sort().map(headerOf)), files: statsOf(files) },
      ...(adapter !== undefined && { adapter, adapterFiles: statsOf(modelFiles(adapter)) }),
    },
    seed: config.seed,
    dtype: config.dtype,
    data: { ...data, eval: questions },
    questions: statsOf(Object.values(sources).map(({ file }) => file)),
    promptTemplate: seedPrompt("{question}", "{options}"),
    eval: evaluation,
    compat: { firstLetterReward: config.compat.firstLetterReward },
  };
}

/** What this process runs on. `engine` is asked of libtorch by the caller, once it is loaded. */
export async function runSettings(
  config: Config,
  engine: { torch: string; threads: number; deviceName: string },
): Promise<RunSettings> {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
  const ffmpeg = await findFfmpeg().then(
    (binary) => binary.version,
    () => "none found",
  );
  return {
    device: config.device,
    deviceName: engine.deviceName,
    threads: engine.threads,
    batchSize: config.eval.batchSize,
    onBadSample: config.data.onBadSample,
    versions: { grove: version, node: process.version, libtorch: engine.torch, ffmpeg },
  };
}

/** `eval.maxNewTokens: 256 -> 512` for every setting in which two evaluations differ. */
export function changedSettings(before: unknown, now: unknown): string[] {
  const old = leaves(before);
  const current = leaves(now);
  return [...new Set([...old.keys(), ...current.keys()])]
    .filter((name) => old.get(name) !== current.get(name))
    .map((name) => `${name}: ${old.get(name) ?? "unset"} -> ${current.get(name) ?? "unset"}`);
}

function leaves(value: unknown, prefix = ""): Map<string, string> {
  if (typeof value !== "object" || value === null) return new Map([[prefix, JSON.stringify(value)]]);
  return new Map(
    Object.entries(value)
      .filter(([, inner]) => inner !== undefined) // as JSON has it
      .flatMap(([key, inner]) => [...leaves(inner, prefix === "" ? key : `${prefix}.${key}`)]),
  );
}

function statsOf(files: readonly string[]): string {
  const stats = [...files].filter((file) => existsSync(file)).sort();
  return hashOf(stats.map((file) => [file, statSync(file).size, Math.round(statSync(file).mtimeMs)]));
}

/** The files of a model folder, without folders in it and what an evaluation whose run folder it is writes there. */
function modelFiles(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => !entry.isDirectory() && !OWN_FILES.test(entry.name))
    .map(({ name }) => path.join(folder, name));
}

const OWN_FILES = /^(?:answers-.+\.jsonl(?:\.tmp)?|evaluation\.json(?:\.\d+\.tmp)?|evaluation\.yaml|results\.json)$/;

function isWeights(file: string): boolean {
  return file.endsWith(".safetensors");
}

/** Name, size and header of a safetensors file (names, shapes and places of its tensors). */
function headerOf(file: string): unknown {
  const descriptor = openSync(file, "r");
  try {
    const length = Buffer.alloc(8);
    readSync(descriptor, length, 0, 8, 0);
    const size = statSync(file).size;
    const header = Buffer.alloc(Math.min(size, Number(length.readBigUInt64LE()), 1 << 27));
    readSync(descriptor, header, 0, header.length, 8);
    return [path.basename(file), size, createHash("sha256").update(header).digest("hex")];
  } finally {
    closeSync(descriptor);
  }
}

function hashOf(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}
