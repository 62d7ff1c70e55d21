/** What the two ways to sample, slot-engine.ts and wave-engine.ts, take and give. */

import type { Prompt } from "../types.ts";
import type { SamplingOptions } from "./sample-token.ts";

/** Of one completion, the end token included where there is one: [Lc] each. What the numbers are is told in types.ts. */
export interface Sampled {
  ids: Int32Array;
  logprobs: Float32Array;
  sampledLogprobs: Float32Array;
  entropies: Float32Array;
}

export interface SampleRequest {
  prompts: readonly Prompt[];
  /** Number of each prompt's first completion in the keys of the draws. */
  firsts: readonly number[];
  groupSize: number; // G
  maxNewTokens: number; // N
  seed: number;
  step: number;
  sampling: SamplingOptions;
  /** Ends completion `completion` (0 .. G - 1) of a prompt at so many tokens, 1 to N, as if an end token stood there. */
  limitOf: (prompt: number, completion: number) => number;
  onEnded: (completions: number) => void;
}

/** Of the last call of rolloutGroups. Times are parts of its own, of the device's where there is one; seconds. */
export interface RolloutStats {
  prefillS: number; // prompts, pictures and videos included
  visionS: number; // of prefillS
  decodeS: number; // what is neither prefill nor capture
  captureS: number; // recording CUDA graphs
  promptTokens: number; // each prompt once
  tokens: number; // in completions, stop tokens included
  steps: number; // passes of the decode loop
  rows: number; // of a step, the most of them
  occupancy: number; // share of those rows that gave a token, 0 to 1
  kvBytes: number; // keys and values, at most
}

export interface SampleResult {
  /** [prompts][G] */
  completions: Sampled[][];
  stats: Omit<RolloutStats, "promptTokens" | "tokens">;
}

export interface SampleEngine extends Disposable {
  sample(request: SampleRequest): SampleResult;
}

export function emptyStats(): RolloutStats {
  const times = { prefillS: 0, visionS: 0, decodeS: 0, captureS: 0 };
  return { ...times, promptTokens: 0, tokens: 0, steps: 0, rows: 0, occupancy: 0, kvBytes: 0 };
}

/** Tokens that a step gave: all but each completion's first, which is drawn from its prompt's logits. */
export function tokensOfSteps(completions: readonly Sampled[][]): number {
  return completions.flat().reduce((sum, { ids }) => sum + ids.length - 1, 0);
}
