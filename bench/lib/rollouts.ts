/** The same rollout several times, and what one step of it must read. */

import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import type { RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import { synchronize } from "../../src/torch/cuda.ts";
import type { Prompt, RolloutGroup } from "../../src/types.ts";

/** Of one rollout: the sampler's own figures, the whole call, and what follows from them. */
export type Run = Sampler["stats"] & { wholeS: number; msPerStep: number; tokensPerS: number };

/** `repeats` runs after one that warms up, whose groups and time of capture are returned. */
export function runRollouts(
  sampler: Sampler,
  prompts: readonly Prompt[],
  options: Pick<RolloutOptions, "groupSize" | "maxNewTokens" | "limitOf">,
  repeats: number,
): { runs: Run[]; groups: RolloutGroup[]; captureS: number } {
  const sampling = { temperature: 1, topK: 0, topP: 1, seed: 1 };
  const groups = sampler.rolloutGroups(prompts, { ...sampling, ...options, step: 0 });
  const { captureS } = sampler.stats;
  const runs = Array.from({ length: repeats }, (_, i): Run => {
    synchronize();
    const started = performance.now();
    sampler.rolloutGroups(prompts, { ...sampling, ...options, step: i + 1 });
    const wholeS = (performance.now() - started) / 1000;
    const stats = { ...sampler.stats };
    return {
      ...stats,
      wholeS,
      msPerStep: (stats.decodeS / stats.steps) * 1000,
      tokensPerS: stats.tokens / stats.decodeS,
    };
  });
  return { runs, groups, captureS };
}

/** Bytes of weights, prompts and own tokens (half of their final number on average) that a step with full slots reads. */
export function stepBytes(
  model: Qwen2VL,
  size: { prompts: number; promptTokens: number; slots: number; newTokens: number },
): number {
  const { text, tieWordEmbeddings } = model.config;
  const read = (name: string) =>
    /^(model\.layers|model\.norm|lm_head)/.test(name) || (tieWordEmbeddings && /embed/.test(name));
  const weights = model.parameters
    .filter(({ name }) => read(name))
    .reduce((sum, { tensor }) => sum + tensor.numel * 2, 0);
  const perToken = 2 * 2 * text.numKvHeads * model.headDim * text.numLayers;
  return weights + (size.prompts * size.promptTokens + (size.slots * size.newTokens) / 2) * perToken;
}
