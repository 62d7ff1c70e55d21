import { clamp, gt, lt, maximum, minimum, mul, where } from "../../torch/ops.ts";
import type { Loss } from "./loss.ts";

/**
 * PPO's clipped surrogate: min(rho A, clip(rho, 1 - epsLow, 1 + epsHigh) A).
 * Paper: DeepSeekMath arXiv:2402.03300 eq. 3; separate bounds (clip-higher): DAPO arXiv:2503.14476 eq. 10.
 *
 * With trainer.dualClip c, where A < 0: max(that, c A), which ends the gradient of a token that has become c times as likely although it was
 * bad; without it such a token's is the larger, the farther it has gone. Paper: arXiv:1912.09729 section "Dual-clip PPO".
 *
 * In the first update from a batch rho is 1: the objective is rho A, the seed's exp(logp - sg(logp)) A. Its value is A, whose gradient does not
 * vanish where the mean of the values does.
 */
export const grpo: Loss = {
  objective({ ratio, advantages, first }, { epsLow, epsHigh, dualClip }) {
    const plain = mul(ratio, advantages);
    if (first) return plain;
    const lower = minimum(plain, mul(clamp(ratio, 1 - epsLow, 1 + epsHigh), advantages));
    if (dualClip === undefined) return lower;
    return where(lt(advantages, 0), maximum(lower, mul(advantages, dualClip)), lower);
  },

  /** Where the ratio has left the band on the side its advantage pushes to; high: also where dual clip holds it. */
  clipped({ ratio, advantages }, { epsLow, epsHigh, dualClip }) {
    const low = mul(lt(ratio, 1 - epsLow), lt(advantages, 0));
    const high = mul(gt(ratio, 1 + epsHigh), gt(advantages, 0));
    if (dualClip === undefined) return { low, high };
    return { low, high: maximum(high, mul(gt(ratio, dualClip), lt(advantages, 0))) };
  },
};
