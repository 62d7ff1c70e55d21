import type { Config } from "../config/schema.ts";
import { meanStd } from "../reward/statistics.ts";
import type { Metrics, RolloutGroup } from "../types.ts";
import { type Baseline, isUniform } from "./advantages/baseline.ts";
import { grpo } from "./advantages/grpo.ts";
import { reinforce } from "./advantages/reinforce.ts";
import { reinforceBaseline } from "./advantages/reinforce-baseline.ts";
import { rloo } from "./advantages/rloo.ts";

/** By the names of trainer.advantage. */
export const BASELINES: Readonly<Record<Config["trainer"]["advantage"], Baseline>> = {
  grpo,
  rloo,
  "reinforce++": reinforce,
  "reinforce++-baseline": reinforceBaseline,
};

type Knobs = Pick<Config["trainer"], "advantage" | "advantageScale" | "advantageEps">;

/**
 * The advantages of every group of a batch, [groups][G]: rewards less their baseline, divided by a standard deviation + eps, with ddof 1 as the
 * seed's torch.std. A completion that no reward function applied to (NaN) is part of no baseline, and its advantage is 0. By default A_i = (r_i - mean(r)) / (std(r) + eps) over the group: DeepSeekMath arXiv:2402.03300, section 4.1.2.
 *
 * batchAdvantages([[1, 0, 0, 0, 0, 0, 0, 0]], { advantage: "grpo", advantageScale: "group", advantageEps: 1e-4 }) // [[2.474, -0.353, ...]]
 */
export function batchAdvantages(batch: readonly (readonly number[])[], config: Readonly<Knobs>): number[][] {
  const { advantageScale: scale, advantageEps: eps } = config;
  const { centre, spreadOf } = BASELINES[config.advantage];
  const scored = batch.map((rewards) => rewards.filter((reward) => !Number.isNaN(reward)));
  const centred = scored.map((rewards) => centre(rewards, scored));
  const ofBatch = scale === "batch" ? meanStd((spreadOf === "rewards" ? scored : centred).flat()).std : 0;
  return centred.map((differences, g) => {
    const rewards = batch[g] as readonly number[];
    if (scale === "none") return inPlaceOf(rewards, differences);
    const std = scale === "group" ? meanStd(rewards).std : ofBatch;
    const scaled = differences.map((difference) => (difference === 0 ? 0 : difference / (std + eps)));
    return inPlaceOf(rewards, scaled);
  });
}

/** The advantages of the completions with a reward, in their places; 0 in the others. */
function inPlaceOf(rewards: readonly number[], advantages: readonly number[]): number[] {
  let next = 0;
  return rewards.map((reward) => (Number.isNaN(reward) ? 0 : (advantages[next++] as number)));
}

/** Fills `advantages` of every group of a batch from rewards less penalties, with bonuses: the groups of all ranks, in an order that does not depend on their number. */
export function assignAdvantages(batch: readonly RolloutGroup[], config: Readonly<Knobs>): void {
  const rewards = batch.map(earned);
  for (const [g, advantages] of batchAdvantages(rewards, config).entries())
    (batch[g] as RolloutGroup).advantages = advantages;
}

function earned({ rewards, penalties = {}, care }: RolloutGroup): number[] {
  const left = Object.values(penalties).reduce<number[]>(
    (left, taken) => left.map((r, i) => r - (taken[i] as number)),
    rewards,
  );
  return care === undefined ? left : left.map((r, i) => r + (care.bonuses[i] as number));
}

/** The share of groups whose rewards are all alike. */
export function uniformMetrics(groups: readonly RolloutGroup[]): Metrics {
  const uniform = groups.filter((group) => isUniform(group.rewards)).length;
  return { "reward/zero_std_frac": groups.length === 0 ? 0 : uniform / groups.length };
}
