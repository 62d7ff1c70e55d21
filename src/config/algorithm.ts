/** The knobs of the algorithm: loss, KL penalty, advantage, filters, reference; and what follows from the choice of a loss. */

import { z } from "zod";
import { careKnobs } from "./care.ts";
import { fraction } from "./numbers.ts";

const natural = () => z.number().int().nonnegative();

export const LOSS_NAMES = ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"] as const;
const AGGREGATIONS = ["sequence", "token", "constant"] as const;
const RATIOS = ["token", "sequence"] as const;
const ADVANTAGES = ["grpo", "rloo", "reinforce++", "reinforce++-baseline"] as const;
const SCALES = ["group", "batch", "none"] as const;

type Loss = (typeof LOSS_NAMES)[number];

/** What each loss is published with; a knob that is set wins. docs/algorithm.md names papers and equations. */
export const LOSS_DEFAULTS: Readonly<Record<Loss, LossDefaults>> = {
  grpo: { lossAggregation: "sequence", ratio: "token", epsLow: 0.2, epsHigh: 0.2 },
  bnpo: { lossAggregation: "token", ratio: "token", epsLow: 0.2, epsHigh: 0.2 },
  dr_grpo: { lossAggregation: "constant", ratio: "token", epsLow: 0.2, epsHigh: 0.2, advantageScale: "none" },
  dapo: { lossAggregation: "token", ratio: "token", epsLow: 0.2, epsHigh: 0.28 },
  gspo: { lossAggregation: "sequence", ratio: "sequence", epsLow: 3e-4, epsHigh: 4e-4 },
  cispo: { lossAggregation: "token", ratio: "token", epsLow: 1, epsHigh: 4 },
  sapo: { lossAggregation: "sequence", ratio: "token", epsLow: 0.2, epsHigh: 0.2 },
};

interface LossDefaults {
  lossAggregation: (typeof AGGREGATIONS)[number];
  ratio: (typeof RATIOS)[number];
  epsLow: number;
  epsHigh: number;
  /** Where trainer.advantage is grpo. */
  advantageScale?: (typeof SCALES)[number];
}

const SCALE_OF: Readonly<Record<(typeof ADVANTAGES)[number], (typeof SCALES)[number]>> = {
  grpo: "group",
  rloo: "none",
  "reinforce++": "batch",
  "reinforce++-baseline": "batch",
};

/** Part of `trainer`. */
export const algorithmKnobs = {
  loss: z.enum(LOSS_NAMES).default("grpo").meta({
    description:
      "What is minimised; docs/algorithm.md has the formulas. It decides what lossAggregation, ratio, epsLow, epsHigh and advantageScale are where they are not set [seed: grpo].",
  }),
  lossAggregation: z.enum(AGGREGATIONS).optional().meta({
    follows: "by loss",
    description:
      "sequence: mean over a completion's tokens, then over completions [grpo, gspo, sapo; seed]; token: mean over all tokens of the batch [bnpo, dapo, cispo]; constant: each token 1 / (completions x lossLength) [dr_grpo]. Of the batch of all ranks.",
  }),
  lossLength: z.number().int().positive().optional().meta({
    follows: "`rollout.maxNewTokens`",
    description: "Tokens that lossAggregation constant divides by.",
  }),
  ratio: z.enum(RATIOS).optional().meta({
    follows: "by loss",
    description:
      "Importance ratio to the policy that sampled: of each token, or the geometric mean of a completion's [gspo: sequence]. Both are 1 in the first update from a batch.",
  }),
  epsLow: fraction().optional().meta({
    follows: "by loss",
    description:
      "Lower clip of the ratio, 1 - epsLow, used when iterations > 1 [0.2; gspo: 3e-4; cispo: 1, no lower bound].",
  }),
  epsHigh: z.number().nonnegative().optional().meta({
    follows: "by loss",
    description:
      "Upper clip of the ratio, 1 + epsHigh, used when iterations > 1 [0.2; dapo: 0.28; gspo: 4e-4; cispo: 4, which in TRL is a bound of 5].",
  }),
  dualClip: z.number().gt(1).optional().meta({
    description:
      "With a negative advantage, a ratio above this has no gradient [verl: 3; TRL's delta]; default: none. Not for cispo and sapo.",
  }),
  sapoTauPos: z.number().positive().default(1).meta({
    description: "Temperature of sapo's gate where the advantage is positive [SAPO: 1].",
  }),
  sapoTauNeg: z.number().positive().default(1.05).meta({
    description: "The same where it is negative: larger forgets a distant token sooner [SAPO: 1.05].",
  }),
  entropyCoef: z.number().nonnegative().default(0).meta({
    description: "Weight of the policy's entropy, which is added to the objective: a bonus for staying unsure.",
  }),
  klCoef: z.number().nonnegative().default(0.1).meta({
    description: "Weight of the KL penalty, beta; 0 keeps no reference in memory, unless care asks one [seed: 0.1].",
  }),
  klEstimator: z.enum(["k1", "k2", "k3"]).default("k3").meta({
    description:
      "Estimate of the KL divergence at a token, d = log reference - log policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 [seed: k3].",
  }),
  klIn: z.enum(["loss", "reward"]).default("loss").meta({
    description:
      "The penalty is a term of the loss [seed], or klCoef times its sum over a completion is taken from the completion's reward.",
  }),
  klClamp: z
    .number()
    .positive()
    .default(11)
    .meta({ description: "The log-ratio to the reference is clamped to +- this [seed: 11]." }),
  referenceEvery: natural().default(0).meta({
    description: "Steps between updates of the reference from the policy; 0: it stays what the run began with [seed].",
  }),
  referenceDecay: z.number().min(0).lt(1).default(0).meta({
    description:
      "Share of the old reference in such an update: 0 replaces it by the policy, 0.995 with referenceEvery 10 is GRPO-CARE's average.",
  }),
  care: careKnobs.prefault({}),
  advantage: z.enum(ADVANTAGES).default("grpo").meta({
    description:
      "What a reward is compared with: the mean of its group; rloo: of the group's others; reinforce++: of the batch; reinforce++-baseline: of its group, then of the batch.",
  }),
  advantageScale: z.enum(SCALES).optional().meta({
    follows: "by advantage, loss",
    description:
      "Advantages are divided by the standard deviation of the group [grpo; seed], of the batch over all ranks [reinforce++], or by nothing [rloo, dr_grpo].",
  }),
  advantageEps: z
    .number()
    .nonnegative()
    .default(1e-4)
    .meta({ description: "Added to that standard deviation [seed: 1e-4]." }),
  filterUniform: z.boolean().default(false).meta({
    description: "Groups whose rewards are all alike are left out of the loss, the KL penalty included.",
  }),
  resampleRounds: natural().default(0).meta({
    description:
      "With filterUniform: other questions are asked in place of those left out, at most so many times a step [DAPO's dynamic sampling].",
  }),
  maskTruncated: z.boolean().default(false).meta({
    description: "Completions that ran into rollout.maxNewTokens are left out of the loss [DAPO's overlong filtering].",
  }),
  overlongTokens: natural().default(0).meta({
    description:
      "A completion that uses n of the last so many of rollout.maxNewTokens is given n / overlongTokens less; a truncated one 1 less [DAPO's soft overlong punishment]. 0: none.",
  }),
};

const knobs = z.strictObject(algorithmKnobs);
type Knobs = z.infer<typeof knobs>;

/** Knobs that follow from others where they are not set. */
type Implied = "lossAggregation" | "lossLength" | "ratio" | "epsLow" | "epsHigh" | "advantageScale";

/** With every knob filled in that follows from the loss, the advantage or the longest completion. */
export function resolveAlgorithm<T extends Knobs>(
  trainer: T,
  maxNewTokens: number,
): Omit<T, Implied> & { [K in Implied]-?: NonNullable<T[K]> } {
  const { advantageScale: ofLoss, ...rest } = LOSS_DEFAULTS[trainer.loss];
  const scale = (trainer.advantage === "grpo" ? ofLoss : undefined) ?? SCALE_OF[trainer.advantage];
  const implied = { ...rest, lossLength: maxNewTokens, advantageScale: scale };
  const names = Object.keys(implied) as (keyof typeof implied)[];
  const filled = Object.fromEntries(names.map((name) => [name, trainer[name] ?? implied[name]]));
  return { ...trainer, ...filled } as ReturnType<typeof resolveAlgorithm<T>>;
}
