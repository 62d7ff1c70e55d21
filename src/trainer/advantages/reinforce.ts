import { type Baseline, isUniform, meanOf } from "./baseline.ts";

/**
 * r_i - mean of the batch's rewards, divided by their standard deviation (trainer.advantageScale batch): a group whose rewards are all alike still
 * learns, since it is compared with other questions. Over completions; the paper's mean and deviation are over tokens.
 * Paper: REINFORCE++, arXiv:2501.03262, "Global Advantage Normalization".
 */
export const reinforce: Baseline = {
  centre(rewards, batch) {
    const all = batch.flat();
    if (isUniform(all)) return rewards.map(() => 0);
    const mean = meanOf(all);
    return rewards.map((reward) => reward - mean);
  },
  spreadOf: "centred",
};
