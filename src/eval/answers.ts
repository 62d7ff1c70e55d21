/**
 * The files of answers of an evaluation: `answers-<level>.jsonl`, a line per question in the seed's fields, and while several processes
 * share the questions `answers-<level>.shard-k-of-N.jsonl` beside it. Whoever goes on with an evaluation reads them all.
 */

import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { CheckpointError, ConfigError } from "../errors.ts";
import type { ChatMessage, Sample } from "../types.ts";
import type { PartPath } from "./parts.ts";

/** A line of a result file; the seed's fields, and what parts of its level the question belongs to where there are any. */
export interface EvalRecord {
  sample_id: string;
  prompt: ChatMessage[];
  problem: string; // text of the question
  solution: string;
  response: string;
  reward: number;
  parts?: PartPath[];
}

/** Share k of N of an evaluation: the questions k-1, k-1+N, k-1+2N, ... of each level. k counts from 1. */
export interface Shard {
  k: number;
  of: number;
}

/** "2/3" -> share 2 of 3. @throws ConfigError */
export function parseShard(text: string): Shard {
  const match = /^(\d{1,4})\/(\d{1,4})$/.exec(text.trim());
  const shard = { k: Number(match?.[1]), of: Number(match?.[2]) };
  if (match === null || shard.k < 1 || shard.k > shard.of)
    throw new ConfigError(`--shard must be k/N with k from 1 to N, such as 1/4, got ${JSON.stringify(text)}`);
  return shard;
}

/** The share's part of a list, in its order. */
export function shardOf<T>(items: readonly T[], shard: Shard | undefined): T[] {
  return shard === undefined ? [...items] : items.filter((_, i) => i % shard.of === shard.k - 1);
}

/** The answers of one level in one folder. */
export class AnswerFiles {
  /** The file this process writes. */
  readonly file: string;
  readonly #folder: string;
  readonly #level: string;

  /** `level` is a name from the config; characters that a file name cannot hold are replaced. */
  constructor(folder: string, level: string, shard?: Shard) {
    this.#folder = folder;
    this.#level = level.replaceAll(/[\\/:*?"<>|]/g, "_");
    const share = shard === undefined ? "" : `.shard-${shard.k}-of-${shard.of}`;
    this.file = path.join(folder, `answers-${this.#level}${share}.jsonl`);
  }

  /**
   * Every answer in the folder, by sample id. A line that was cut off when a process died is left out, and removed from the file this
   * process writes; other files may be another's who is still writing.
   */
  read(): Map<string, EvalRecord> {
    const answers = new Map<string, EvalRecord>();
    for (const file of [...this.#shardFiles(), this.#wholeFile()]) {
      if (!existsSync(file)) continue;
      for (const record of readAnswers(file, { mend: file === this.file })) answers.set(record.sample_id, record);
    }
    return answers;
  }

  /** Replaces all files by one that holds the answers to `samples` in their order. */
  merge(samples: readonly Sample[], answers: ReadonlyMap<string, EvalRecord>): void {
    const shards = this.#shardFiles();
    if (shards.length === 0) return;
    const whole = this.#wholeFile();
    // Answers to questions that are not among the samples (a smaller --limit than before) are kept, at the end.
    const ids = new Set(samples.map(({ id }) => id));
    const rest = [...answers.values()].filter(({ sample_id }) => !ids.has(sample_id));
    const ordered = samples.flatMap(({ id }) => answers.get(id) ?? []);
    writeFileSync(`${whole}.tmp`, [...ordered, ...rest].map((record) => `${JSON.stringify(record)}\n`).join(""));
    renameSync(`${whole}.tmp`, whole);
    for (const file of shards) rmSync(file);
  }

  /** Opens the file for appending; each line is on its way to the disk when `write` returns. */
  open(): { write(record: EvalRecord): void } & Disposable {
    const descriptor = openSync(this.file, "a");
    return {
      // Not writeSync, which may write a part of the line, as on a disk that is just full, and say so by a number only.
      write: (record) => writeFileSync(descriptor, `${JSON.stringify(record)}\n`),
      [Symbol.dispose]: () => closeSync(descriptor),
    };
  }

  #wholeFile(): string {
    return path.join(this.#folder, `answers-${this.#level}.jsonl`);
  }

  #shardFiles(): string[] {
    const name = (file: string) => file.startsWith(`answers-${this.#level}.shard-`) && SHARD.test(file);
    return existsSync(this.#folder)
      ? readdirSync(this.#folder)
          .filter(name)
          .sort()
          .map((file) => path.join(this.#folder, file))
      : [];
  }
}

const SHARD = /\.shard-\d+-of-\d+\.jsonl$/;

/** The answers that a file holds, in its order; with `mend` a torn last line is cut off the file. @throws CheckpointError */
export function readAnswers(file: string, { mend = false } = {}): EvalRecord[] {
  const text = readFileSync(file, "utf8");
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  if (mend && whole.length < text.length) truncateSync(file, Buffer.byteLength(whole));
  return whole.split("\n").flatMap((line, i) => {
    if (line === "") return [];
    let record: Partial<EvalRecord> | null;
    try {
      record = JSON.parse(line);
    } catch (error) {
      throw new CheckpointError(file, `line ${i + 1} is not valid JSON; ${REMOVE}`, {}, error);
    }
    if (typeof record?.sample_id !== "string")
      throw new CheckpointError(file, `line ${i + 1} is no answer, it has no sample_id; ${REMOVE}`);
    return [record as EvalRecord];
  });
}

const REMOVE = "remove it, and its question is asked again";
