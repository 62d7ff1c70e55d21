import { type Baseline, isUniform, meanOf } from "./baseline.ts";

/** r_i - mean(r), the mean of its group. Paper: DeepSeekMath arXiv:2402.03300 section 4.1.2. */
export const grpo: Baseline = {
  centre(rewards) {
    if (isUniform(rewards)) return rewards.map(() => 0);
    const mean = meanOf(rewards);
    return rewards.map((reward) => reward - mean);
  },
  spreadOf: "rewards",
};
