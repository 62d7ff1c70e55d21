import type { Completion, Prompt } from "../types.ts";
import type { RolloutOptions, Sampler } from "./sampler.ts";

/** One completion per prompt, greedy or sampled: what evaluation and `generate` do. */
export function generate(
  sampler: Sampler,
  prompts: readonly Prompt[],
  options: Omit<RolloutOptions, "groupSize" | "step"> & { step?: number },
): Completion[] {
  const groups = sampler.rolloutGroups(prompts, { step: 0, ...options, groupSize: 1 });
  return groups.map((group) => group.completions[0] as Completion);
}
