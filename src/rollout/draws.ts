/** The keys of the random draws: a token is a function of the weights and of (seed, step, sample id, completion, position). */

import type { Prompt } from "../types.ts";
import { philoxUniform, sampleKey } from "./philox.ts";

/** The number of each prompt's first completion in the keys of the draws: the n-th occurrence of a sample id begins n groups later. */
export function firstCompletions(
  prompts: readonly Prompt[],
  { firstCompletion = 0, groupSize }: { firstCompletion?: number; groupSize: number },
): number[] {
  const seen = new Map<string, number>();
  return prompts.map(({ sample: { id } }) => {
    const occurrence = seen.get(id) ?? 0;
    seen.set(id, occurrence + 1);
    return firstCompletion + occurrence * groupSize;
  });
}

/**
 * The numbers that choose the tokens, [maxNewTokens, prompts * count], in [0, 1) and exact in float32: what the fused sampling draws by itself.
 * @param firsts number of the first completion of each prompt
 */
export function drawUniforms(
  prompts: readonly Prompt[],
  options: { seed: number; step: number; maxNewTokens: number; greedy?: boolean },
  firsts: readonly number[],
  count: number,
): Float32Array {
  const { seed, step, maxNewTokens, greedy = false } = options;
  const rows = prompts.length * count;
  const numbers = new Float32Array(maxNewTokens * rows);
  if (greedy) return numbers;
  for (const [q, prompt] of prompts.entries()) {
    for (let g = 0; g < count; g++) {
      const key = sampleKey(seed, step, prompt.sample.id, (firsts[q] as number) + g);
      for (let position = 0; position < maxNewTokens; position++) {
        numbers[position * rows + q * count + g] = philoxUniform(key, position);
      }
    }
  }
  return numbers;
}
