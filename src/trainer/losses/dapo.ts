import { grpo } from "./grpo.ts";
import type { Loss } from "./loss.ts";

/**
 * GRPO's terms as a mean over all tokens of the batch, clipped at 1 + 0.28 above: unlikely tokens get room to grow (clip-higher).
 * The paper's whole recipe also sets klCoef 0, filterUniform with resampleRounds, overlongTokens (or maskTruncated).
 * Paper: arXiv:2503.14476 eq. 8 to 13.
 */
export const dapo: Loss = grpo;
