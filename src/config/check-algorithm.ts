/** Which choices of loss, advantage, KL penalty and filters cannot go together, and why. */

import { LOSS_DEFAULTS } from "./algorithm.ts";
import { needsReference } from "./care.ts";
import type { Config } from "./schema.ts";

type Refuse = (wrong: boolean, knob: string, problem: string) => void;

export function checkAlgorithm(config: Config, refuse: Refuse): void {
  const { trainer, rollout, compat } = config;
  checkLoss(trainer, refuse);
  checkAdvantage(trainer, refuse);
  checkCare(config, refuse);
  const { klCoef, klEstimator, klIn, referenceEvery, referenceDecay } = trainer;

  refuse(
    klEstimator === "k1" && klIn === "loss" && klCoef > 0,
    "trainer.klEstimator",
    "k1 in the loss penalises nothing: its gradient is that of log p(token) whatever the distance, 0 on average; set klIn: reward, or k2 or k3",
  );
  refuse(
    klIn === "reward" && compat.unmaskedSecondEos,
    "trainer.klIn",
    "compat.unmaskedSecondEos counts padding that was never sampled; the seed's penalty is in the loss",
  );
  refuse(
    referenceEvery > 0 && !needsReference(trainer),
    "trainer.referenceEvery",
    "with klCoef 0 and no care.bonus there is no reference to update",
  );
  refuse(
    referenceDecay > 0 && referenceEvery === 0,
    "trainer.referenceDecay",
    "a reference that is never updated (referenceEvery 0) has no average",
  );

  const { filterUniform, resampleRounds, maskTruncated, overlongTokens } = trainer;
  refuse(
    resampleRounds > 0 && !filterUniform,
    "trainer.resampleRounds",
    "questions are asked in place of groups that filterUniform leaves out; set it to true",
  );
  refuse(
    maskTruncated && rollout.ignoreEos,
    "trainer.maskTruncated",
    "with rollout.ignoreEos every completion is truncated: nothing would be left to learn from",
  );
  refuse(
    overlongTokens >= rollout.maxNewTokens,
    "trainer.overlongTokens",
    `${overlongTokens} is not less than rollout.maxNewTokens, ${rollout.maxNewTokens}: every completion would be punished`,
  );
}

function checkLoss(trainer: Config["trainer"], refuse: Refuse): void {
  const { loss, lossAggregation, ratio, dualClip, epsHigh } = trainer;
  const own = LOSS_DEFAULTS[loss];
  const isItsAggregation = loss === "bnpo" || loss === "dr_grpo" || loss === "dapo"; // grpo's terms, added up in another way
  refuse(
    isItsAggregation && lossAggregation !== own.lossAggregation,
    "trainer.lossAggregation",
    `${lossAggregation} is not ${loss}, which adds tokens up by ${own.lossAggregation}; for other sums of the same terms set loss: grpo`,
  );
  refuse(loss === "gspo" && ratio === "token", "trainer.ratio", "gspo with a ratio for each token is loss: grpo");
  refuse(
    dualClip !== undefined && (loss === "cispo" || loss === "sapo"),
    "trainer.dualClip",
    `${loss} bounds every ratio by itself; dual clip is for losses that clip on one side`,
  );
  refuse(
    dualClip !== undefined && dualClip <= 1 + epsHigh,
    "trainer.dualClip",
    `${dualClip} is inside the band of the clip, which ends at ${1 + epsHigh}`,
  );
  refuse(
    loss === "cispo" && epsHigh === 0,
    "trainer.epsHigh",
    "cispo never stops a token's gradient; a bound of 1 would only switch the ratio off",
  );
}

function checkAdvantage({ advantage, advantageScale, filterUniform }: Config["trainer"], refuse: Refuse): void {
  refuse(
    advantage === "rloo" && advantageScale === "group",
    "trainer.advantageScale",
    "rloo over its group's standard deviation is advantage grpo times G / (G - 1); set batch or none",
  );
  refuse(
    advantage.startsWith("reinforce++") && advantageScale !== "batch",
    "trainer.advantageScale",
    `${advantage} is normalised over the batch, not by ${advantageScale}`,
  );
  refuse(
    advantage === "reinforce++" && filterUniform,
    "trainer.filterUniform",
    "reinforce++ learns from groups whose rewards are all alike: it compares them with the batch; use reinforce++-baseline or do not filter",
  );
}

function checkCare({ trainer: { care, filterUniform }, rewards }: Config, refuse: Refuse): void {
  if (care.bonus === 0) {
    refuse(care.margin > 0, "trainer.care.margin", "there is no bonus to be near to; set trainer.care.bonus");
    return;
  }
  const names = rewards.map(({ name }) => name);
  refuse(
    care.reward !== undefined && !names.includes(care.reward),
    "trainer.care.reward",
    `${care.reward} is none of the rewards (${names.join(", ")}), so nothing says which completions are right`,
  );
  refuse(
    filterUniform,
    "trainer.filterUniform",
    "with care a group whose answers are all right still learns from who gets the bonus, which is not known yet when groups are left out",
  );
}
