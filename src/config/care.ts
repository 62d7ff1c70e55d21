/** The knobs of GRPO-CARE's consistency bonus (src/trainer/care.ts), and when a run keeps a reference policy. */

import { z } from "zod";

/** `trainer.care`. Paper: GRPO-CARE, arXiv:2506.16141 section 3. */
export const careKnobs = z.strictObject({
  bonus: z.number().nonnegative().default(0).meta({
    description:
      "Share of a right completion's accuracy that it is given on top where the reference finds its answer likely after its reasoning [GRPO-CARE: 0.5, with klCoef 0, referenceEvery 10 and referenceDecay 0.995]. 0: none.",
  }),
  margin: z.number().min(0).max(1).default(0).meta({
    description:
      "A completion may be so much below the mean likelihood of its group's right ones [GRPO-CARE: 0 for SEED-Bench-R1, 0.01 for general video].",
  }),
  cap: z.number().gt(0).max(1).default(0.95).meta({
    description: "A likelihood above this counts as this: who is sure enough is not held against who is surer [0.95].",
  }),
  reward: z.string().optional().meta({
    follows: "the first of `rewards`",
    description: "The reward function that says how right a completion is.",
  }),
});

interface WithReference {
  klCoef: number;
  care: { bonus: number };
}

/** Whether there is a reference policy: something to be penalised by, or to ask for a likelihood. */
export function needsReference({ klCoef, care }: WithReference): boolean {
  return klCoef > 0 || care.bonus > 0;
}
