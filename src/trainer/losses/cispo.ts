import { clamp, detach, gt, lt, mul } from "../../torch/ops.ts";
import type { Loss } from "./loss.ts";

/**
 * Clipped importance sampling: sg(clip(rho, 1 - epsLow, 1 + epsHigh)) A log p. What is clipped is a token's weight, never its gradient: no token
 * drops out, however far the policy has gone.
 * Paper: MiniMax-M1 arXiv:2506.13585 eq. 4 and 5. It leaves the lower bound open (epsLow 1) and tunes the upper one; 5 as in ScaleRL,
 * arXiv:2510.13786. The value is -mean(A log p): not a distance from 0 as the clipped surrogate's is.
 */
export const cispo: Loss = {
  objective({ logprobs, ratio, advantages }, { epsLow, epsHigh }) {
    const weight = clamp(detach(ratio), 1 - epsLow, 1 + epsHigh);
    return mul(mul(weight, advantages), logprobs);
  },

  clipped({ ratio }, { epsLow, epsHigh }) {
    return { low: lt(ratio, 1 - epsLow), high: gt(ratio, 1 + epsHigh) };
  },
};
