import type { Metrics, RolloutGroup } from "../types.ts";

/**
 * Group-normalised advantages: A_i = (r_i - mean(r)) / (std(r) + eps), std with ddof 1 as the seed's torch.std.
 * Paper: DeepSeekMath arXiv:2402.03300, section 4.1.2. A group whose rewards are all alike teaches nothing: exactly 0, whatever the
 * rounding of its mean.
 *
 * groupAdvantages([1, 0, 0, 0, 0, 0, 0, 0], 1e-4) // [2.474, -0.353, ...]
 */
export function groupAdvantages(rewards: readonly number[], eps: number): number[] {
  if (isUniform(rewards)) return rewards.map(() => 0);
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const squares = rewards.reduce((sum, reward) => sum + (reward - mean) ** 2, 0);
  const std = Math.sqrt(squares / (rewards.length - 1));
  return rewards.map((reward) => (reward - mean) / (std + eps));
}

/** Fills `advantages` of every group from its `rewards`. */
export function assignAdvantages(groups: readonly RolloutGroup[], eps: number): void {
  for (const group of groups) group.advantages = groupAdvantages(group.rewards, eps);
}

/** The share of groups whose rewards are all alike. */
export function uniformMetrics(groups: readonly RolloutGroup[]): Metrics {
  const uniform = groups.filter((group) => isUniform(group.rewards)).length;
  return { "reward/zero_std_frac": groups.length === 0 ? 0 : uniform / groups.length };
}

function isUniform(rewards: readonly number[]): boolean {
  return rewards.every((reward) => reward === rewards[0]);
}
