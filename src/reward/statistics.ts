import type { Metrics, RolloutGroup } from "../types.ts";

/** Mean and standard deviation (ddof 1, 0 for fewer than two values) of the values that are not NaN. Mean of nothing: NaN. */
export function meanStd(values: readonly number[]): { mean: number; std: number; count: number } {
  const valid = values.filter((value) => !Number.isNaN(value));
  const count = valid.length;
  const mean = count === 0 ? Number.NaN : valid.reduce((sum, value) => sum + value, 0) / count;
  const squares = valid.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: count < 2 ? 0 : Math.sqrt(squares / (count - 1)), count };
}

/**
 * What the scored groups of a step earned: `reward/mean` over all completions, `reward/std` as the seed logs it (mean over groups of
 * the standard deviation inside a group), and for each function `reward/<name>` and `reward/<name>_std` over the completions it
 * applied to. A function that applied to none is left out.
 */
export function rewardMetrics(groups: readonly RolloutGroup[]): Metrics {
  const metrics: Metrics = {
    "reward/mean": meanStd(groups.flatMap((group) => group.rewards)).mean,
    "reward/std": meanStd(groups.map((group) => meanStd(group.rewards).std)).mean,
  };
  const names = new Set(groups.flatMap((group) => Object.keys(group.rewardBreakdown)));
  for (const name of names) {
    const { mean, std, count } = meanStd(groups.flatMap((group) => group.rewardBreakdown[name] ?? []));
    if (count === 0) continue;
    metrics[`reward/${name}`] = mean;
    metrics[`reward/${name}_std`] = std;
  }
  return metrics;
}
