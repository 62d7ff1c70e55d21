/**
 * Saving while training goes on: a checkpoint's tensors are copied into host memory (snapshot.ts), and a thread writes it from there
 * (checkpoint-thread.ts) while the next steps are made. One is in flight at a time. Where the host has no room for a snapshot, and for the
 * last checkpoint of a session, which no step follows, the files are written from the tensors themselves; the bytes are the same.
 *
 * Of several ranks each writes its files; rank 0 waits until all have, moves them into the checkpoint and gives it its name.
 */

import path from "node:path";
import type { BestRule } from "../config/best-checkpoints.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { log } from "../log.ts";
import { tensorBytes } from "../model/safetensors.ts";
import { patiently } from "../torch/progress.ts";
import { scope } from "../torch/scope.ts";
import type { Metrics } from "../types.ts";
import type { CheckpointFile } from "./checkpoint.ts";
import {
  type CheckpointToWrite,
  type FileToWrite,
  rateCheckpoint,
  writeCheckpoint,
  writePart,
} from "./checkpoint-folder.ts";
import { announceFailure, announcePart, collectParts } from "./checkpoint-parts.ts";
import { CheckpointThread } from "./checkpoint-thread.ts";
import { Snapshot } from "./snapshot.ts";

/** How long the other ranks may take to write their parts where a run ends with an error, which may be that one of them is gone. */
const CLOSING_MS = 5000;

/** A checkpoint that is on its way. */
interface Begun {
  step: number;
  files: FileToWrite[];
  value: number | undefined;
}

export class Checkpointer {
  readonly #runDir: string;
  readonly #keep: { keepLast: number; best?: BestRule };
  readonly #ranks: Ranks;
  readonly #snapshot: Snapshot;
  readonly #thread = new CheckpointThread();
  #inFlight: Promise<void> = Promise.resolve(); // never rejects
  #failure: { error: unknown } | null = null;
  #metrics: Metrics = {};
  #closing = Number.POSITIVE_INFINITY; // since when, ms

  /** @param options which checkpoints stay: as many of the newest and, with `best`, of the best; the others' defaults serve a run alone */
  constructor(runDir: string, options: { keepLast: number; best?: BestRule; snapshot?: Snapshot; ranks?: Ranks }) {
    this.#runDir = runDir;
    this.#keep = { keepLast: options.keepLast, ...(options.best && { best: options.best }) };
    this.#ranks = options.ranks ?? ALONE;
    this.#snapshot = options.snapshot ?? new Snapshot();
  }

  /**
   * Begins the checkpoint of a step, with the tensors as they are now; resolves when training may go on. With `last` it is complete then,
   * as far as it is this rank's. `files` are those that this rank has to write; `value` says how good the step was, where that is known.
   * @throws CheckpointError what this one, or the one before it, failed with
   */
  async save(
    step: number,
    files: readonly CheckpointFile[],
    options: { last?: boolean; value?: number | undefined } = {},
  ): Promise<void> {
    const start = performance.now();
    await this.saved();
    const staged = options.last ? null : this.#snapshot.take(files);
    // Rank 0 holds training until it has all parts where it writes in place, and a rank that waits for it in the next step could not hand its own over.
    const hold = this.#ranks.any(staged === null);
    const { value } = options;
    if (staged === null) await this.#writeNow({ step, value, files: files.map(inPlace) }, start);
    else {
      this.#inFlight = this.#writeBeside({ step, value, files: staged });
      if (hold) await this.saved();
    }
    this.#metrics["time/checkpoint_s"] = secondsSince(start);
  }

  /** Says how good the checkpoint of a step is, which is complete. */
  rate(step: number, value: number | undefined): void {
    const { best } = this.#keep;
    if (best !== undefined && this.#ranks.isFirst) rateCheckpoint(this.#runDir, step, best, value);
  }

  /** To be called before the weights or the optimizer's state change: a device may still be copying them. The host does not wait. */
  beforeUpdate(): void {
    this.#snapshot.beforeUpdate();
  }

  /** @throws CheckpointError what a checkpoint has failed with since */
  check(): void {
    const failure = this.#failure;
    this.#failure = null;
    if (failure !== null) throw failure.error;
  }

  /** Resolves when no checkpoint is in flight. @throws CheckpointError what the last one failed with */
  async saved(): Promise<void> {
    await this.#inFlight;
    this.check();
  }

  /** `time/checkpoint_s`: how long the latest checkpoint held training; `time/checkpoint_write_s`: its writing beside training. Each once. */
  takeMetrics(): Metrics {
    const metrics = this.#metrics;
    this.#metrics = {};
    return metrics;
  }

  /** Waits for what is in flight. A failure that nobody has been told of is logged. */
  async close(): Promise<void> {
    this.#closing = performance.now();
    await this.#inFlight;
    if (this.#failure !== null) log.error({ error: String(this.#failure.error) }, "the last checkpoint failed");
    await this.#thread.close();
    this.#snapshot[Symbol.dispose]();
  }

  async #writeBeside(checkpoint: Begun): Promise<void> {
    const { step, files } = checkpoint;
    const { rank } = this.#ranks;
    try {
      await this.#snapshot.taken();
      if (rank > 0) {
        const { part, seconds } = await this.#thread.writePart({ runDir: this.#runDir, step, rank, files });
        this.#metrics["time/checkpoint_write_s"] = seconds;
        announcePart(this.#ranks, step, part);
        return;
      }
      const { folder, seconds } = await this.#thread.write(await this.#whole(checkpoint));
      this.#metrics["time/checkpoint_write_s"] = seconds;
      announce(folder, seconds);
    } catch (error) {
      this.#failure = { error };
      if (rank > 0) this.#tellFailure(step, error);
    }
  }

  async #writeNow(checkpoint: Begun, start: number): Promise<void> {
    const { step, files } = checkpoint;
    const { rank } = this.#ranks;
    if (rank === 0) {
      const whole = await this.#whole(checkpoint);
      announce(
        patiently(() => writeCheckpoint(whole)),
        secondsSince(start),
      );
      return;
    }
    try {
      const part = { runDir: this.#runDir, step, rank, files };
      announcePart(
        this.#ranks,
        step,
        patiently(() => writePart(part)),
      );
    } catch (error) {
      this.#tellFailure(step, error);
      throw error;
    }
  }

  /** Tells rank 0, unless that has gone and the job's store with it. */
  #tellFailure(step: number, error: unknown): void {
    try {
      announceFailure(this.#ranks, step, error);
    } catch (lost) {
      log.warn({ error: String(lost) }, "rank 0 could not be told that a checkpoint failed");
    }
  }

  /** Rank 0's files and, when they are written, those of the others. */
  async #whole({ step, files, value }: Begun): Promise<CheckpointToWrite> {
    const start = performance.now();
    const limit = this.#ranks.group?.timeoutMs ?? 0;
    const isDue = () => performance.now() > Math.min(start + limit, this.#closing + CLOSING_MS);
    const parts = await collectParts(this.#ranks, step, path.join(this.#runDir, `checkpoint-${step}`), isDue);
    return { runDir: this.#runDir, step, files, ...this.#keep, ...(value !== undefined && { value }), parts };
  }
}

function announce(checkpoint: string, seconds: number): void {
  log.info({ checkpoint, seconds: Number(seconds.toFixed(3)) }, "saved");
}

/** A file whose tensors are fetched when their turn to be written comes. */
function inPlace(file: CheckpointFile): FileToWrite {
  if ("copyOf" in file) return file;
  const { name } = file;
  if ("bytes" in file) return { name, parts: [file.bytes] };
  return { name, parts: tensorParts(file) };
}

function* tensorParts({ head, tensors }: Extract<CheckpointFile, { head: Uint8Array }>): Generator<Uint8Array> {
  yield head;
  for (const { read } of tensors) yield scope(() => tensorBytes(read()));
}

function secondsSince(start: number): number {
  return (performance.now() - start) / 1000;
}
