/** Which prompts go through the model together. */

/** Tokens of prompts in one pass. */
export const PREFILL_TOKENS = 8192;

/** Consecutive runs of prompts with at most `budget` tokens together; a longer prompt makes a run of its own. */
export function packPrompts(promptLengths: readonly number[], budget: number): number[][] {
  const runs: number[][] = [];
  let tokens = 0;
  for (const [index, length] of promptLengths.entries()) {
    const run = runs.at(-1);
    if (run && tokens + length <= budget) {
      run.push(index);
      tokens += length;
    } else {
      runs.push([index]);
      tokens = length;
    }
  }
  return runs;
}
