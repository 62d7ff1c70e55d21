/**
 * The folder of a run:
 *   config.yaml          every knob, resolved
 *   metrics.jsonl        a line per step: {"step": 12, "reward/mean": 0.4, ...}; step 0 is before the first update
 *   completions.jsonl    the first groups of every step with their rewards and advantages
 *   log.jsonl            everything that was logged
 *   ranks/               of a job of several processes: rank-<n>.jsonl, what rank n > 0 logged; rank-<n>.log, what it printed
 *   checkpoint-<step>/   see checkpoint.ts
 *   best                 with trainer.keepBest: a link to the checkpoint that is best so far (best-checkpoint.ts)
 *   final/               the trained model as a Hugging Face folder
 * Lines are appended and handed to the operating system before a call returns, so a killed process loses at most the line it was
 * writing. A resumed run cuts the lines after its checkpoint: the steps they tell of are made again.
 */

import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { dumpConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { CheckpointError, ConfigError } from "../errors.ts";
import { logToRunFolder } from "../log.ts";
import type { Metrics, Prompt, RolloutGroup } from "../types.ts";
import { replaceFile } from "./files.ts";

const FILES = { config: "config.yaml", metrics: "metrics.jsonl", completions: "completions.jsonl" } as const;

/** What a run leaves in its folder and a run that overwrites it removes; the log is kept. */
const OWN_ENTRY =
  /^(config\.yaml|metrics\.jsonl|completions\.jsonl|final|\.final\..*|\.?best(\.tmp)?|numerics-step-\d+(-rank-\d+)?\.json|trace-\d+(-rank-\d+)?\.json|checkpoint-\d+|\.checkpoint-\d+\..*|\.\.?part-\d+.*)$/;

/** Where the ranks of a job leave their logs. */
export const RANKS_FOLDER = "ranks";

/** One question's completions as completions.jsonl holds them. */
export interface CompletionRecord {
  step: number;
  sample_id: string;
  prompt: string;
  solution: string;
  completions: string[];
  tokens: number[];
  rewards: number[];
  reward_breakdown: Record<string, number[]>;
  reward_columns?: Record<string, unknown[]>; // logged by reward functions
  penalties?: Record<string, number[]>;
  care?: NonNullable<RolloutGroup["care"]>;
  advantages: number[];
}

/** A question and what was computed for it, for the dump of a step that failed. */
export interface ComputedGroup {
  prompt: Prompt;
  completions: readonly Int32Array[];
  rewards?: readonly number[];
  advantages?: readonly number[];
}

export class RunFolder implements Disposable {
  readonly dir: string;
  /** Files of lines; null in the folder of a rank that follows. */
  readonly #lines: { metrics: number; completions: number } | null = null; // descriptors
  readonly #follower: number | undefined;
  readonly #endLog: () => void;

  /**
   * Opens the folder of a run that starts (a folder that holds a run already is refused, or emptied with `overwrite`) or, with
   * `resumeAt`, of one that goes on after so many steps: later lines are cut. A rank that follows the first of its job (`follower`: its
   * number) writes nothing but its log and its dumps.
   * @throws ConfigError if the folder holds a run and neither option is given.
   */
  constructor(config: Config, options: { resumeAt?: number; overwrite?: boolean; follower?: number } = {}) {
    this.dir = path.resolve(config.runDir);
    mkdirSync(this.dir, { recursive: true });
    this.#follower = options.follower;
    if (options.follower !== undefined) {
      this.#endLog = logToRunFolder(this.dir, path.join(RANKS_FOLDER, `rank-${options.follower}.jsonl`));
      return;
    }
    if (options.resumeAt !== undefined) {
      for (const file of [FILES.metrics, FILES.completions]) cutAfterStep(path.join(this.dir, file), options.resumeAt);
    } else {
      if (options.overwrite) emptyRunFolder(this.dir);
      if (holdsRun(this.dir)) {
        throw new ConfigError(
          `runDir: ${this.dir} holds a run already; resume it, overwrite it or set another runDir`,
          {
            runDir: this.dir,
            hint: "--resume goes on with it, --overwrite replaces it, --run-dir names another folder",
          },
        );
      }
    }
    this.#endLog = logToRunFolder(this.dir);
    replaceFile(path.join(this.dir, FILES.config), dumpConfig(config));
    this.#lines = {
      metrics: openSync(path.join(this.dir, FILES.metrics), "a"),
      completions: openSync(path.join(this.dir, FILES.completions), "a"),
    };
  }

  writeMetrics(step: number, metrics: Metrics): void {
    if (this.#lines !== null) this.#append("metrics", { step, ...metrics });
  }

  /** Whether the last line is that of this step and has no evaluation. False in the folder of a rank that follows. */
  lacksEvaluation(step: number): boolean {
    const last = this.#lines === null ? undefined : readMetrics(path.join(this.dir, FILES.metrics)).at(-1);
    return last?.step === step && !Object.keys(last).some((name) => name.startsWith("eval/"));
  }

  addToLastLine(metrics: Metrics): void {
    if (this.#lines === null) return;
    const file = path.join(this.dir, FILES.metrics);
    const lines = wholeLines(file);
    lines.push(JSON.stringify({ ...JSON.parse(lines.pop() as string), ...metrics }));
    replaceFile(file, lines.map((line) => `${line}\n`).join(""));
    closeSync(this.#lines.metrics);
    this.#lines.metrics = openSync(file, "a");
  }

  writeCompletions(step: number, groups: readonly RolloutGroup[]): void {
    if (this.#lines === null) return;
    for (const group of groups) this.#append("completions", completionRecord(step, group));
  }

  /** writeFileSync writes all of the line or throws; writeSync may write a part of it and say so by a number only. */
  #append(to: "metrics" | "completions", line: object): void {
    try {
      writeFileSync(this.#lines?.[to] as number, `${JSON.stringify(line)}\n`);
    } catch (error) {
      // The system's message does not name the file.
      throw new CheckpointError(
        path.join(this.dir, FILES[to]),
        `could not be written: ${(error as Error).message}`,
        {},
        error,
      );
    }
  }

  /** Writes what was being computed when a number was not finite. Returns the file's path. */
  dumpBatch(step: number, reason: Record<string, unknown>, batch: readonly ComputedGroup[]): string {
    const share = this.#follower === undefined ? "" : `-rank-${this.#follower}`;
    const file = path.join(this.dir, `numerics-step-${step}${share}.json`);
    const groups = batch.map(({ prompt, completions, ...rest }) => ({
      sample_id: prompt.sample.id,
      source: prompt.sample.source,
      prompt_ids: [...prompt.inputIds],
      completion_ids: completions.map((ids) => [...ids]),
      ...rest,
    }));
    replaceFile(file, JSON.stringify({ step, ...reason, batch: groups }, nonFiniteAsText));
    return file;
  }

  /** Forces the lines written so far to the disk. A checkpoint does this first, so that its lines outlive a power cut as it does. */
  flush(): void {
    for (const file of Object.values(this.#lines ?? {})) fsyncSync(file);
  }

  [Symbol.dispose](): void {
    for (const file of Object.values(this.#lines ?? {})) closeSync(file);
    this.#endLog();
  }
}

/** The lines of a metrics.jsonl; a torn last line is left out. */
export function readMetrics(file: string): (Metrics & { step: number })[] {
  return wholeLines(file).map((line) => JSON.parse(line));
}

function completionRecord(step: number, group: RolloutGroup): CompletionRecord {
  const { sample } = group.prompt;
  return {
    step,
    sample_id: sample.id,
    prompt: questionText(sample.messages.at(-1)?.content ?? ""),
    solution: sample.solution,
    completions: group.completions.map((completion) => completion.text),
    tokens: group.completions.map((completion) => completion.ids.length),
    rewards: group.rewards,
    reward_breakdown: group.rewardBreakdown,
    ...(group.rewardNotes?.columns && { reward_columns: group.rewardNotes.columns }),
    ...(group.penalties && { penalties: group.penalties }),
    ...(group.care && { care: group.care }),
    advantages: group.advantages,
  };
}

/** The text parts of a chat message's content. */
export function questionText(content: RolloutGroup["prompt"]["sample"]["messages"][number]["content"]): string {
  if (typeof content === "string") return content;
  return content.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
}

/** JSON has no NaN and no infinity; a dump that turned them into null would hide what it is for. */
function nonFiniteAsText(_key: string, value: unknown): unknown {
  return typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
}

/** Cuts a file of lines, which begin with their step and are in its order: before the first that is of a later step, torn or damaged. */
function cutAfterStep(file: string, lastStep: number): void {
  if (!existsSync(file)) return;
  const descriptor = openSync(file, "r+");
  try {
    ftruncateSync(descriptor, endOfStep(descriptor, lastStep));
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** A piece of a file that is looked at at a time: all completions of a long run are more than one string can hold. */
const PIECE_BYTES = 2 ** 22;
/** `{"step":12,` is shorter. */
const STEP_BYTES = 32;

/** Where a file's lines up to a step end, in bytes. */
function endOfStep(descriptor: number, lastStep: number): number {
  const piece = Buffer.allocUnsafe(PIECE_BYTES);
  let kept = 0;
  let begin = ""; // of the line that is being read
  for (let position = 0; ; ) {
    const count = readSync(descriptor, piece, 0, PIECE_BYTES, position);
    if (count === 0) return kept;
    for (let from = 0; from < count; ) {
      const newline = piece.subarray(0, count).indexOf(10, from);
      const end = newline === -1 ? count : newline;
      begin += piece.toString("latin1", from, Math.min(end, from + STEP_BYTES - begin.length));
      from = end + 1;
      if (newline === -1) break;
      const step = /^\{"step":(\d+)[,}]/.exec(begin)?.[1];
      if (begin !== "" && (step === undefined || Number(step) > lastStep)) return kept;
      kept = position + from;
      begin = "";
    }
    position += count;
  }
}

function wholeLines(file: string): string[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, "utf8").split("\n");
  lines.pop(); // what follows the last newline: nothing, or a line that was being written when the process died
  return lines.filter((line) => line !== "");
}

function holdsRun(dir: string): boolean {
  return (
    wholeLines(path.join(dir, FILES.metrics)).length > 0 ||
    readdirSync(dir).some((name) => /^checkpoint-\d+$/.test(name))
  );
}

function emptyRunFolder(dir: string): void {
  for (const name of readdirSync(dir)) {
    if (OWN_ENTRY.test(name)) rmSync(path.join(dir, name), { recursive: true });
  }
}
