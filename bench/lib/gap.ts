import { packGroups } from "../../src/model/packed.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import type { RolloutGroup } from "../../src/types.ts";

/** Groups that are compared at most. */
const GROUPS = 8;

/** |sampler - trainer| of the log-probabilities of sampled tokens, nats, a pass for each group. */
export function logprobGap(model: Qwen2VL, groups: readonly RolloutGroup[]): { mean: number; max: number } {
  const gaps = groups.slice(0, GROUPS).flatMap(({ prompt, completions }) => {
    using pass = model.pass(packGroups([{ prompt, completions: completions.map(({ ids }) => ids) }]), { grad: false });
    const trainer = pass.logprobs.toNumbers();
    const sampled = completions.flatMap(({ logprobs }) => Array.from(logprobs));
    return trainer.map((p, i) => Math.abs(p - (sampled[i] as number)));
  });
  return {
    mean: gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length,
    max: gaps.reduce((most, gap) => Math.max(most, gap), 0),
  };
}
