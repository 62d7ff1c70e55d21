import type { ChatMessage, Completion, RecordPlace } from "../types.ts";

/**
 * What a reward function is called with, once per step: arrays of one length N, an entry per completion, the completions of one
 * question next to each other. Each of the records' own fields is an array too (undefined where a record lacks it); a field cannot
 * replace one of the names below.
 */
export interface RewardArgs {
  prompts: ChatMessage[][]; // [N], the messages of the question
  completions: string[]; // [N]
  completionMessages: ChatMessage[][]; // [N], the same as the assistant's turn
  completionIds: Int32Array[]; // [N], token ids, the one that ends it included
  solution: string[]; // [N], `<answer>B.</answer>`
  goldAnswer: string[]; // [N], `B.`: what stands in the solution's answer block, or all of it
  id: string[]; // [N], sample ids
  lengths: number[]; // [N], tokens in the completion
  finish: Completion["finish"][]; // [N]
  recordPlace: RecordPlace[]; // [N], file and line that the question comes from
  [field: string]: unknown[];
}

/** What a function with `call: completion` is called with: the same of one completion, and the fields of its record. */
export interface CompletionArgs {
  prompt: ChatMessage[];
  completion: string;
  completionMessages: ChatMessage[];
  completionIds: Int32Array;
  solution: string;
  goldAnswer: string;
  id: string;
  length: number;
  finish: Completion["finish"];
  recordPlace: RecordPlace;
  [field: string]: unknown;
}

/** How far the run is. Outside training: step 0 of 1. */
export interface RewardStep {
  step: number; // from 0
  steps: number; // of the whole run
  epoch: number; // passes over the data made before this step, with decimals
  epochs: number;
}

/** The second argument of a function. */
export interface RewardContext extends RewardStep {
  /** A number for metrics.jsonl, as `reward/<function>/<name>`: the mean over a step's calls, by their completions. */
  logMetric(name: string, value: number): void;
  /** A column for completions.jsonl: a value per completion, or with `call: completion` one value. */
  logExtra(column: string, values: unknown): void;
}

/** The contract of a reward module: a finite number per completion, or null where the reward does not apply. */
export type RewardFunction = (
  args: RewardArgs,
  context: RewardContext,
) => Promise<(number | null)[]> | (number | null)[];

/** The same with `call: completion`. */
export type CompletionRewardFunction = (
  args: CompletionArgs,
  context: RewardContext,
) => Promise<number | null> | number | null;
