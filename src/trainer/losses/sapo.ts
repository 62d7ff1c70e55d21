import { gt, mul, sigmoid, sub, where } from "../../torch/ops.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { Loss } from "./loss.ts";

/**
 * Soft adaptive policy optimisation: f(rho) A with a gate f(rho) = 4 / tau sigmoid(tau (rho - 1)) instead of a clip. At rho 1 its slope is 1,
 * GRPO's gradient; away from it the slope fades, sooner with a larger tau: that of tokens with a negative advantage, which push up all
 * the others.
 * Paper: arXiv:2511.20347 section 3, tau 1 and 1.05.
 */
export const sapo: Loss = {
  objective({ ratio, advantages }, { sapoTauPos, sapoTauNeg }) {
    const gain = where(gt(advantages, 0), gate(ratio, sapoTauPos), gate(ratio, sapoTauNeg));
    return mul(gain, advantages);
  },

  clipped: () => null,
};

function gate(ratio: Tensor, tau: number): Tensor {
  return mul(sigmoid(mul(sub(ratio, 1), tau)), 4 / tau);
}
