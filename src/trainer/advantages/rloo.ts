import { type Baseline, isUniform } from "./baseline.ts";

/**
 * r_i - mean of the group's other rewards, a baseline that the completion itself has no part in: G / (G - 1) times grpo's.
 * Paper: RLOO, arXiv:2402.14740 section 2 ("REINFORCE Leave-One-Out"). [1, 2, 3, 4] -> [-2, -2/3, 2/3, 2]
 */
export const rloo: Baseline = {
  centre(rewards) {
    if (isUniform(rewards)) return rewards.map(() => 0);
    const sum = rewards.reduce((total, reward) => total + reward, 0);
    return rewards.map((reward) => reward - (sum - reward) / (rewards.length - 1));
  },
  spreadOf: "rewards",
};
