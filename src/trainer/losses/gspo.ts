import { grpo } from "./grpo.ts";
import type { Loss } from "./loss.ts";

/**
 * GRPO's terms with one ratio s_i for a whole completion, the geometric mean of its tokens' ratios (importance-ratio.ts), so that what is clipped is
 * completions; the band is therefore narrow, 1 - 3e-4 to 1 + 4e-4.
 * Written as the paper's GSPO-token, s_it = sg(s_i) policy_t / sg(policy_t): all tokens of a completion have one weight and one advantage
 * here, and then value and gradient are those of GSPO.
 * Paper: arXiv:2507.18071 eq. 5 to 7, GSPO-token: eq. 13 and 14; the band: section 5.1.
 */
export const gspo: Loss = grpo;
