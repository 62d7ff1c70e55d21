/** What follows from the choice of a loss, and which choices cannot go together. */

import { expect, test } from "vitest";
import { LOSS_DEFAULTS, LOSS_NAMES } from "../../src/config/algorithm.ts";
import { dumpConfig, loadConfig, parseConfig } from "../../src/config/load.ts";

const set = (...assignments: string[]) => loadConfig({ set: ["model.path=m", ...assignments] }).trainer;

test("without a word about it the algorithm is the seed's", () => {
  expect(set()).toMatchObject({
    ...{ loss: "grpo", lossAggregation: "sequence", ratio: "token", epsLow: 0.2, epsHigh: 0.2, entropyCoef: 0 },
    ...{ klEstimator: "k3", klIn: "loss", klCoef: 0.1, klClamp: 11, referenceEvery: 0 },
    ...{ advantage: "grpo", advantageScale: "group", advantageEps: 1e-4 },
    ...{ filterUniform: false, resampleRounds: 0, maskTruncated: false, overlongTokens: 0 },
    care: { bonus: 0, margin: 0, cap: 0.95 },
  });
  expect(set().dualClip).toBeUndefined();
});

test.each(LOSS_NAMES)("trainer.loss=%s fills in what it is published with, and what is set wins", (loss) => {
  const { advantageScale = "group", ...own } = LOSS_DEFAULTS[loss];
  expect(set(`trainer.loss=${loss}`)).toMatchObject({ ...own, advantageScale, lossLength: 256 });
  expect(set(`trainer.loss=${loss}`, "trainer.epsHigh=0.5", "trainer.epsLow=0.1")).toMatchObject({
    ...{ ...own, epsHigh: 0.5, epsLow: 0.1 },
  });
});

test.each([
  ["grpo", "group"],
  ["rloo", "none"],
  ["reinforce++", "batch"],
  ["reinforce++-baseline", "batch"],
])("advantage %s is divided by the deviation of: %s", (advantage, scale) => {
  expect(set(`trainer.advantage=${advantage}`).advantageScale).toBe(scale);
});

test("dr_grpo's scale is for the mean of the group; with another baseline that one's counts", () => {
  expect(set("trainer.loss=dr_grpo").advantageScale).toBe("none");
  expect(set("trainer.loss=dr_grpo", "trainer.advantage=reinforce++").advantageScale).toBe("batch");
  expect(set("trainer.loss=dr_grpo", "trainer.advantageScale=group").advantageScale).toBe("group");
});

test("the resolved config reads back as itself", () => {
  const config = loadConfig({ set: ["model.path=m", "trainer.loss=gspo", "rollout.maxNewTokens=77"] });
  expect(config.trainer).toMatchObject({ epsLow: 3e-4, ratio: "sequence", lossLength: 77 });
  expect(parseConfig(dumpConfig(config), "config.yaml")).toEqual(config);
});

test.each([
  [
    ["loss=bnpo", "lossAggregation=sequence"],
    "trainer.lossAggregation: sequence is not bnpo, which adds tokens up by token",
  ],
  [["loss=dr_grpo", "lossAggregation=token"], "trainer.lossAggregation: token is not dr_grpo"],
  [["loss=gspo", "ratio=token"], "trainer.ratio: gspo with a ratio for each token is loss: grpo"],
  [["loss=cispo", "dualClip=6"], "trainer.dualClip: cispo bounds every ratio by itself"],
  [["loss=sapo", "dualClip=3"], "trainer.dualClip: sapo bounds"],
  [["dualClip=1.1"], "trainer.dualClip: 1.1 is inside the band of the clip, which ends at 1.2"],
  [["dualClip=0.5"], "trainer.dualClip: expected number to be >1"],
  [["loss=cispo", "epsHigh=0"], "trainer.epsHigh: cispo never stops a token's gradient"],
  [["klEstimator=k1"], "trainer.klEstimator: k1 in the loss penalises nothing"],
  [["klCoef=0", "referenceEvery=5"], "trainer.referenceEvery: with klCoef 0 and no care.bonus there is no reference"],
  [["referenceDecay=0.9"], "trainer.referenceDecay: a reference that is never updated"],
  [["referenceEvery=5", "referenceDecay=1"], "trainer.referenceDecay: expected number to be <1"],
  [["advantage=rloo", "advantageScale=group"], "trainer.advantageScale: rloo over its group's"],
  [
    ["advantage=reinforce++", "advantageScale=none"],
    "trainer.advantageScale: reinforce++ is normalised over the batch, not by none",
  ],
  [["advantage=reinforce++", "filterUniform=true"], "trainer.filterUniform: reinforce++ learns from groups"],
  [
    ["resampleRounds=2"],
    "trainer.resampleRounds: questions are asked in place of groups that filterUniform leaves out",
  ],
  [["care.margin=0.01"], "trainer.care.margin: there is no bonus to be near to"],
  [["care.bonus=0.5", "care.reward=exact"], "trainer.care.reward: exact is none of the rewards (accuracy)"],
  [["care.bonus=0.5", "filterUniform=true"], "trainer.filterUniform: with care a group whose answers are all right"],
  [["care.bonus=-1"], "trainer.care.bonus: expected number to be >=0"],
  [["care.cap=0"], "trainer.care.cap: expected number to be >0"],
  [["overlongTokens=256"], "trainer.overlongTokens: 256 is not less than rollout.maxNewTokens, 256"],
])("refused: %j", (knobs, message) => {
  expect(() => set(...knobs.map((knob) => `trainer.${knob}`))).toThrow(message);
});

test.each([
  [["trainer.klIn=reward", "compat.unmaskedSecondEos=true"], "trainer.klIn: compat.unmaskedSecondEos counts padding"],
  [
    ["trainer.maskTruncated=true", "rollout.ignoreEos=true"],
    "trainer.maskTruncated: with rollout.ignoreEos every completion",
  ],
])("refused across sections: %j", (knobs, message) => {
  expect(() => set(...knobs)).toThrow(message);
});

test.each([
  ["klEstimator=k1", "klIn=reward"],
  ["klEstimator=k1", "klCoef=0"],
  ["loss=dapo", "klCoef=0", "filterUniform=true", "resampleRounds=3", "overlongTokens=64"],
  ["advantage=reinforce++-baseline", "filterUniform=true"],
  ["advantage=rloo", "advantageScale=batch"],
  ["referenceEvery=10", "referenceDecay=0.995"],
  ["care.bonus=0.5", "klCoef=0", "referenceEvery=10", "referenceDecay=0.995"],
  ["care.bonus=0.5", "klCoef=0.04", "care.margin=0.01", "care.reward=accuracy"],
  ["loss=grpo", "lossAggregation=constant", "lossLength=100"],
  ["dualClip=3", "epsHigh=0.28"],
])("allowed: %s %s", (...knobs) => {
  expect(() => set(...knobs.filter(Boolean).map((knob) => `trainer.${knob}`))).not.toThrow();
});
