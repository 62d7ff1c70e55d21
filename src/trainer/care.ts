/**
 * GRPO-CARE's consistency bonus: a right completion earns more where a reference that follows the policy slowly finds its answer likely after its
 * reasoning, compared with the group's other right ones. The rewards themselves stay as they are; advantages are computed from their sum with the bonus.
 *
 *   a_i   accuracy of completion i of a group
 *   S     the right ones: a_i > 0.1 and a_i >= mean(a)
 *   c_i   min(cap, exp(mean log p_ref of its answer's tokens)), given the question and the completion up to there
 *   b_i   bonus * a_i  where i is in S and c_i >= mean of c over S - margin, else 0
 *
 * Paper: GRPO-CARE, arXiv:2506.16141 section 3; the details are those of its code (TencentARC/GRPO-CARE). It departs from that in one point: a completion
 * without an answer block has no c_i, no bonus and no part in the mean; there it counts as certain.
 */

import type { Config } from "../config/schema.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { answerTokens } from "../reward/answer-tokens.ts";
import { meanStd } from "../reward/statistics.ts";
import type { Metrics, RolloutGroup } from "../types.ts";
import { notANumber } from "./penalties.ts";

type Knobs = Config["trainer"]["care"];

/** Accuracy of a graded reward that is as good as none. */
const WRONG = 0.1;
/** Numbers nearer than this are the same: a mean of equal float32 numbers may be off by its rounding. */
const ROUNDING = 1e-6;

/**
 * @param accuracies [G]; NaN where the reward did not apply
 * @param likelihoods [G], not capped; null without an answer
 *
 * careBonuses([1, 1, 0], [0.9, 0.5, 0.9], { bonus: 0.5, margin: 0, cap: 0.95 }).bonuses // [0.5, 0, 0]: the mean of the right ones is 0.7
 */
export function careBonuses(
  accuracies: readonly number[],
  likelihoods: readonly (number | null)[],
  { bonus, margin, cap }: Pick<Knobs, "bonus" | "margin" | "cap">,
): NonNullable<RolloutGroup["care"]> {
  const mean = meanStd(accuracies).mean;
  const right = accuracies.map((accuracy) => accuracy > WRONG && accuracy >= mean - ROUNDING);
  const confidences = likelihoods.map((likelihood) => (likelihood === null ? null : Math.min(cap, likelihood)));
  const ofRight = confidences.filter((confidence, i): confidence is number => confidence !== null && right[i] === true);
  const least = meanStd(ofRight).mean - margin - ROUNDING; // NaN, which nobody reaches, without any
  const bonuses = accuracies.map((accuracy, i) => {
    const confidence = confidences[i] ?? null;
    return right[i] === true && confidence !== null && confidence >= least ? bonus * accuracy : 0;
  });
  return { right, confidences, bonuses };
}

/**
 * Sets `care` of every group.
 * @throws NumericsError for a likelihood that is no number
 * @param logprobs of the reference, for each of a group's completions in turn, its tokens first and perhaps more behind them
 */
export function giveBonuses(
  groups: readonly RolloutGroup[],
  logprobs: readonly (readonly number[])[],
  { trainer: { care }, rewards }: Pick<Config, "trainer" | "rewards">,
  tokenizer: Pick<Tokenizer, "decode">,
): void {
  const reward = care.reward ?? (rewards[0] as { name: string }).name;
  const pieces = new Map<number, string>();
  const pieceOf = (id: number) => {
    const known = pieces.get(id) ?? tokenizer.decode([id], { skipSpecialTokens: true });
    pieces.set(id, known);
    return known;
  };
  let next = 0;
  for (const group of groups) {
    const likelihoods = group.completions.map(({ ids }) => {
      const own = logprobs[next++] as readonly number[];
      const answer = answerTokens(Array.from(ids, pieceOf));
      if (answer === null) return null;
      const said = own.slice(...answer);
      const likelihood = Math.exp(said.reduce((sum, logprob) => sum + logprob, 0) / said.length);
      if (Number.isNaN(likelihood)) throw notANumber("the reference's likelihood of the answer", likelihood, group);
      return likelihood;
    });
    group.care = careBonuses(group.rewardBreakdown[reward] as number[], likelihoods, care);
  }
}

/**
 * `care/bonus_mean` and `care/rewarded_share` (who got one) over completions, `care/right_share` (who is in S), `care/confidence_mean` over those with an answer and
 * `care/confidence_right` over those of S, `care/answered_share`. Empty where the bonus is off.
 */
export function careMetrics(groups: readonly RolloutGroup[]): Metrics {
  const all = groups.flatMap(({ care }) => {
    return (care?.bonuses ?? []).map((bonus, i) => ({
      bonus,
      confidence: care?.confidences[i] ?? Number.NaN,
      right: care?.right[i] === true,
    }));
  });
  if (all.length === 0) return {};
  const share = (count: number) => count / all.length;
  const confidence = meanStd(all.map((one) => one.confidence));
  const ofRight = meanStd(all.filter(({ right }) => right).map((one) => one.confidence));
  return {
    "care/bonus_mean": meanStd(all.map(({ bonus }) => bonus)).mean,
    "care/rewarded_share": share(all.filter(({ bonus }) => bonus > 0).length),
    "care/right_share": share(all.filter(({ right }) => right).length),
    "care/answered_share": share(confidence.count),
    ...(confidence.count > 0 && { "care/confidence_mean": confidence.mean }),
    ...(ofRight.count > 0 && { "care/confidence_right": ofRight.mean }),
  };
}
