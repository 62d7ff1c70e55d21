/**
 * Checkpoints: `<runDir>/checkpoint-<step>/` holds all that a run needs to go on as if it had never stopped.
 *   model/                  the policy as a Hugging Face folder, usable on its own; of a run with lora in its place
 *   adapter/                the adapter in PEFT's layout: model.path, which is frozen, is read again
 *   optimizer.safetensors   AdamW's moments and, for bfloat16 weights, the 16 low bits of the float32 master; of a job of several ranks
 *                           optimizer-<n>-of-<ranks>.safetensors, each rank's part (saved-state.ts); any number of ranks goes on from either
 *   reference/              with trainer.referenceEvery: the reference policy as it is by now (moving-reference.ts); where it is cut over the ranks
 *                           reference-<n>-of-<ranks>.safetensors, each rank's part
 *   state.json              step, updates, counters, the resolved config, versions, a fingerprint of the weights the run started from
 *   manifest.json           bytes and CRC-32 of every file above, and the number that tells how good it is; written last
 * The data order and every random draw are functions of (seed, step), so the step is their whole state. A reference policy that does not move is
 * the model the run started from and is read, or drawn, again; its fingerprint tells whether it is still the same.
 *
 * A folder is written under a hidden name, flushed to the disk and renamed: a killed process leaves a whole checkpoint or none.
 */

import { closeSync, existsSync, openSync, readFileSync, readSync } from "node:fs";
import path from "node:path";
import { crc32 } from "node:zlib";
import { namedBase } from "../config/adapter-folder.ts";
import { type MergedAdapter, mergedTexts } from "../config/merged-adapters.ts";
import type { Config } from "../config/schema.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import { adapterContent } from "../model/peft.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { safetensorsHeader, type TensorEntry } from "../model/safetensors.ts";
import { cat, reshape, slice, to } from "../torch/ops.ts";
import { patiently } from "../torch/progress.ts";
import { scope } from "../torch/scope.ts";
import type { Sample } from "../types.ts";
import { FORMAT, readManifest } from "./checkpoint-folder.ts";
import type { AdamW } from "./optimizer.ts";
import { SavedState, savedName, stateFile } from "./saved-state.ts";

const STATE = "state.json";
const MODEL = "model";
const ADAPTER = "adapter";

export interface TrainState {
  stage: "grpo" | "sft";
  /** Steps made; the run goes on with this one, counted from 0. */
  step: number;
  /** Optimizer updates made; more than steps where a batch is used several times. */
  updates: number;
  /** Times that a bad sample was left out of a step. */
  badSamples: number;
  /** The bad samples of all sessions, by their place; absent in checkpoints of older versions. */
  badRecords?: string[];
  /** Fingerprint of the ids of the training records, in their order; absent in checkpoints of older versions. */
  records?: string;
  /** Fingerprint of the weights before the first step: those of the reference policy. */
  start: string;
  config: Config;
  versions: Record<string, string>;
}

/** A file of a checkpoint before it is written, by its path in it: its bytes, the file whose bytes it takes, or tensors behind a header. */
export type CheckpointFile =
  | { name: string; bytes: Uint8Array }
  | { name: string; copyOf: string }
  | { name: string; head: Uint8Array; tensors: readonly TensorEntry[] };

/**
 * All files of a checkpoint that a rank writes: its part of the optimizer's state, and rank 0 all else but the manifest. `copyFrom` is a folder
 * whose tokenizer and processor files go along with the model; `merged` the adapters in its weights.
 */
export function checkpointFiles(
  state: TrainState,
  model: Qwen2VL,
  optimizer: AdamW,
  options: { copyFrom: string; merged?: readonly MergedAdapter[]; ranks: Pick<Ranks, "rank" | "world"> },
): CheckpointFile[] {
  const moments = optimizer.state().map((entry): TensorEntry => {
    const { tensor } = entry;
    return { name: savedName(entry), dtype: tensor.dtype, shape: tensor.shape, read: () => tensor };
  });
  const own = tensorFile(stateFile(options.ranks), moments);
  if (options.ranks.rank > 0) return [own];
  const { adapter } = model;
  const { weights, texts, copies } =
    adapter === null
      ? model.folderContent({ copyFrom: options.copyFrom })
      : { ...adapterContent(adapter, namedBase(state.config)), copies: [] };
  const folder = adapter === null ? MODEL : ADAPTER;
  const merged = adapter === null ? mergedTexts(options.merged ?? []) : [];
  return [
    ...weights.map(({ name, tensors }) => tensorFile(`${folder}/${name}`, tensors)),
    ...[...texts, ...merged].map(({ name, text }) => ({ name: `${folder}/${name}`, bytes: Buffer.from(text) })),
    ...copies.map(({ name, from }) => ({ name: `${folder}/${name}`, copyOf: from })),
    own,
    { name: STATE, bytes: Buffer.from(JSON.stringify(state, null, 1)) },
  ];
}

export function tensorFile(name: string, tensors: readonly TensorEntry[]): CheckpointFile {
  return { name, head: safetensorsHeader(tensors), tensors };
}

/**
 * Reads a checkpoint's state.json after checking every file against the manifest: each rank looks at a share of them, and all come to one verdict.
 * @param ranks that read the same checkpoint together
 * @throws CheckpointError for any damage, and for a checkpoint of another stage.
 */
export function readCheckpoint(
  folder: string,
  stage: TrainState["stage"],
  ranks: Pick<Ranks, "rank" | "world" | "gather"> = ALONE,
): TrainState {
  const { format, files } = readManifest(folder);
  if (format !== FORMAT) throw new CheckpointError(folder, `has format ${format}, this version reads ${FORMAT}`);
  const bySize = Object.entries(files).sort(([, a], [, b]) => b.bytes - a.bytes);
  const share = bySize.filter((_, i) => i % ranks.world === ranks.rank);
  const found = patiently(() => firstDamage(folder, share));
  const damage = ranks.gather(found).find((one) => one !== null);
  if (damage != null)
    throw new CheckpointError(damage.file, `${damage.problem}; delete the checkpoint to resume from the one before`);
  const state: TrainState = JSON.parse(readFileSync(path.join(folder, STATE), "utf8"));
  if (state.stage !== stage) {
    throw new CheckpointError(folder, `belongs to a run of ${state.stage}, not ${stage}; set another runDir`);
  }
  return state;
}

/** The Hugging Face folder inside a checkpoint. @throws CheckpointError where there is none */
export function modelFolder(checkpoint: string): string {
  const folder = path.join(checkpoint, MODEL);
  if (!existsSync(folder))
    throw new CheckpointError(checkpoint, "holds an adapter and no model: set lora as its run had it");
  return folder;
}

/** The folder in PEFT's layout inside a checkpoint of a run with lora. @throws CheckpointError where there is none */
export function adapterFolder(checkpoint: string): string {
  const folder = path.join(checkpoint, ADAPTER);
  if (!existsSync(folder))
    throw new CheckpointError(checkpoint, "holds a whole model and no adapter: its run had no lora");
  return folder;
}

/** Gives the optimizer the state that a checkpoint holds. */
export function restoreOptimizer(checkpoint: string, state: TrainState, optimizer: AdamW): void {
  using saved = new SavedState(checkpoint);
  optimizer.restore(state.updates, (entry) => saved.read(entry), checkpoint);
}

/**
 * Fingerprint of a model's weights: CRC-32 over the first values of every parameter. The same on every device; another model, or the
 * same one trained on, has another.
 * @param before that of the parameters in front of these, where they come one group after the other
 */
export function fingerprint(parameters: readonly Parameter[], before = "0"): string {
  const VALUES = 64;
  if (parameters.length === 0) return before;
  return scope(() => {
    const heads = parameters.map(({ tensor }) => to(slice(reshape(tensor, [-1]), 0, 0, VALUES), { dtype: "float32" }));
    const values = to(cat(heads, 0), { device: "cpu" }).toArray();
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    return crc32(bytes, Number.parseInt(before, 16)).toString(16);
  });
}

/** Fingerprint of training records: the ids in their order, which the data order and every draw are functions of. */
export function recordsFingerprint(samples: readonly Pick<Sample, "id">[]): string {
  return samples.reduce((crc, { id }) => crc32(`${id}\n`, crc), 0).toString(16);
}

/** What is wrong with the first file that is not what the manifest says; null where all are. */
function firstDamage(
  folder: string,
  files: readonly (readonly [name: string, expected: { bytes: number; crc32: number }])[],
): { file: string; problem: string } | null {
  for (const [name, expected] of files) {
    const file = path.join(folder, name);
    if (!existsSync(file)) return { file, problem: "is missing" };
    const found = digest(file);
    if (found.bytes === expected.bytes && found.crc32 === expected.crc32) continue;
    const difference = `expected ${expected.bytes} bytes with CRC ${expected.crc32}, got ${found.bytes} with ${found.crc32}`;
    return { file, problem: `is damaged (${difference})` };
  }
  return null;
}

function digest(file: string): { bytes: number; crc32: number } {
  const buffer = Buffer.allocUnsafe(1 << 22);
  const descriptor = openSync(file, "r");
  let bytes = 0;
  let crc = 0;
  try {
    for (;;) {
      const count = readSync(descriptor, buffer);
      if (count === 0) return { bytes, crc32: crc };
      crc = crc32(buffer.subarray(0, count), crc);
      bytes += count;
    }
  } finally {
    closeSync(descriptor);
  }
}
