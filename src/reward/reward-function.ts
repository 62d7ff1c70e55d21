import type { ChatMessage, Completion } from "../types.ts";

/**
 * What a reward function is called with, once per step: arrays of one length N, an entry per completion, the completions of one
 * question next to each other. Each of the records' own fields is an array too (undefined where a record lacks it); a field cannot
 * replace one of the names below.
 */
export interface RewardArgs {
  prompts: ChatMessage[][]; // [N], the messages of the question
  completions: string[]; // [N]
  solution: string[]; // [N], `<answer>B.</answer>`
  id: string[]; // [N], sample ids
  lengths: number[]; // [N], tokens in the completion
  finish: Completion["finish"][]; // [N]
  [field: string]: unknown[];
}

/** The contract of a reward module: a finite number per completion, or null where the reward does not apply. */
export type RewardFunction = (args: RewardArgs) => Promise<(number | null)[]> | (number | null)[];
