/** What is taken from the rewards before advantages are computed, by name in `RolloutGroup.penalties`. The rewards themselves stay as they are. */

import type { Config } from "../config/schema.ts";
import { NumericsError } from "../errors.ts";
import type { Metrics, RolloutGroup } from "../types.ts";
import { klOfCompletion } from "./kl.ts";

/**
 * DAPO's soft overlong punishment, arXiv:2503.14476 eq. 13: 0 up to maxNewTokens - overlongTokens, from there on in a straight line to 1 at
 * maxNewTokens. overlongPenalty(90, 100, 20) // 0.5
 */
export function overlongPenalty(length: number, maxNewTokens: number, overlongTokens: number): number {
  return Math.min(1, Math.max(0, length - (maxNewTokens - overlongTokens)) / overlongTokens);
}

/** Sets the penalty of trainer.overlongTokens, if there is one. */
export function punishLength(groups: readonly RolloutGroup[], { trainer, rollout }: Config): void {
  const { overlongTokens } = trainer;
  if (overlongTokens === 0) return;
  for (const group of groups) {
    const overlong = group.completions.map(({ ids }) =>
      overlongPenalty(ids.length, rollout.maxNewTokens, overlongTokens),
    );
    group.penalties = { ...group.penalties, overlong };
  }
}

/**
 * Sets klCoef times the sum over each completion's tokens of the estimated divergence from the reference (trainer.klIn reward), by the log-probabilities
 * that the sampler gave: those of the policy before the step. REINFORCE++ (arXiv:2501.03262 eq. 8) takes from a token what comes from it on;
 * what came before it does not depend on it, so that both have the same gradient on average.
 * @param reference its log-probability of each token, completion by completion in the order of the groups
 * @throws NumericsError for a penalty that is no number: taken from a reward it would make that one no reward function applied to
 */
export function punishDistance(
  groups: readonly RolloutGroup[],
  reference: ArrayLike<number>,
  trainer: Config["trainer"],
): void {
  let start = 0;
  for (const group of groups) {
    const kl = group.completions.map(({ logprobs }) => {
      const own = Array.prototype.slice.call(reference, start, start + logprobs.length) as number[];
      start += logprobs.length;
      const distance = klOfCompletion(own, logprobs, trainer);
      if (!Number.isFinite(distance)) throw notANumber("the distance from the reference", distance, group);
      return trainer.klCoef * distance;
    });
    group.penalties = { ...group.penalties, kl };
  }
}

/** What a reference says of a group's completions, where it is not finite. */
export function notANumber(what: string, value: number, { prompt: { sample } }: RolloutGroup): NumericsError {
  return new NumericsError(`${what} of a completion of ${sample.id}`, value, { ...sample.source, sampleId: sample.id });
}

/** `reward/penalty_<name>`: the mean of each penalty over completions. */
export function penaltyMetrics(groups: readonly RolloutGroup[]): Metrics {
  const names = new Set(groups.flatMap(({ penalties = {} }) => Object.keys(penalties)));
  const completions = groups.reduce((sum, group) => sum + group.completions.length, 0);
  return Object.fromEntries(
    [...names].map((name) => {
      const total = groups.flatMap(({ penalties = {} }) => penalties[name] ?? []).reduce((sum, one) => sum + one, 0);
      return [`reward/penalty_${name}`, total / completions];
    }),
  );
}
