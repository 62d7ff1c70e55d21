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
 * applied to. A function that applied to none is left out, and so are completions that none applied to.
 * Of functions of the user's own (`own`) also in how many completions they did not apply and in how many they failed, and what they logged.
 */
export function rewardMetrics(groups: readonly RolloutGroup[], own: readonly string[] = []): Metrics {
  const scored = groups.filter(({ rewards }) => rewards.some((reward) => !Number.isNaN(reward)));
  const metrics: Metrics = {};
  if (scored.length > 0) {
    metrics["reward/mean"] = meanStd(scored.flatMap((group) => group.rewards)).mean;
    metrics["reward/std"] = meanStd(scored.map((group) => meanStd(group.rewards).std)).mean;
  }
  const names = new Set(groups.flatMap((group) => Object.keys(group.rewardBreakdown)));
  for (const name of names) {
    const values = groups.flatMap((group) => group.rewardBreakdown[name] ?? []);
    const { mean, std, count } = meanStd(values);
    if (count > 0) {
      metrics[`reward/${name}`] = mean;
      metrics[`reward/${name}_std`] = std;
    }
    if (!own.includes(name)) continue;
    metrics[`reward/${name}/not_applicable`] = values.length - count;
    metrics[`reward/${name}/errors`] = groups.reduce((sum, group) => sum + (group.rewardNotes?.errors?.[name] ?? 0), 0);
  }
  return { ...metrics, ...loggedMetrics(groups) };
}

/** Means of what reward functions logged, each group's number counting as often as it has completions. */
function loggedMetrics(groups: readonly RolloutGroup[]): Metrics {
  const sums = new Map<string, { sum: number; count: number }>();
  for (const { rewardNotes, completions } of groups) {
    for (const [name, value] of Object.entries(rewardNotes?.metrics ?? {})) {
      const { sum, count } = sums.get(name) ?? { sum: 0, count: 0 };
      sums.set(name, { sum: sum + value * completions.length, count: count + completions.length });
    }
  }
  return Object.fromEntries([...sums].map(([name, { sum, count }]) => [`reward/${name}`, sum / count]));
}
