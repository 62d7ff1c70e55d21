/** Splits a rollout by waves into those that fit the limits on completions and memory. What is sampled never depends on the split. */

import type { KvShape } from "./kv-shape.ts";

/** Questions decoded together. Every question is in one wave only, so its prompt is computed once. */
export interface Wave {
  questions: number[]; // indices of the prompts
  /** Completions of each question that are decoded at a time; groups larger than the limit take several rounds. */
  rounds: { first: number; count: number }[];
}

export interface WaveLimits {
  groupSize: number; // G
  /** Most completions at a time. */
  maxConcurrent: number;
  /** Most bytes of keys, values and logits; one question is always let through. */
  maxBytes: number;
  /** Bytes of a wave of `questions` questions with `group` completions each, the longest prompt `promptSlots` tokens. */
  bytesOf(shape: Pick<KvShape, "questions" | "group" | "promptSlots">): number;
}

/** Prompts of similar length go together, since a wave pads to its longest; waves are about equally large. */
export function planWaves(promptLengths: readonly number[], limits: WaveLimits): Wave[] {
  const { groupSize, maxConcurrent, maxBytes, bytesOf } = limits;
  const round = Math.min(groupSize, maxConcurrent);
  const rounds = [];
  for (let first = 0; first < groupSize; first += round) {
    rounds.push({ first, count: Math.min(round, groupSize - first) });
  }
  const byLength = [...promptLengths.keys()].sort((a, b) => promptLengths[b]! - promptLengths[a]! || a - b);
  const mostQuestions = Math.max(1, Math.floor(maxConcurrent / round));
  const waves: Wave[] = [];
  let next = 0;
  while (next < byLength.length) {
    const left = byLength.length - next;
    // Divided evenly: 9 questions at most 8 at a time make 5 and 4, not 8 and 1.
    let count = Math.ceil(left / Math.ceil(left / mostQuestions));
    const promptSlots = promptLengths[byLength[next]!]!;
    while (count > 1 && bytesOf({ questions: count, group: round, promptSlots }) > maxBytes) count--;
    waves.push({ questions: byLength.slice(next, next + count), rounds });
    next += count;
  }
  return waves;
}
