import { grpo } from "./grpo.ts";
import type { Loss } from "./loss.ts";

/**
 * "GRPO done right": GRPO's terms added up and divided by a constant, completions x trainer.lossLength, so that a long wrong completion is not
 * let off lightly for its length; and advantages that are not divided by the group's standard deviation, so that questions which nearly
 * all or nearly no completions get right do not count more (trainer.advantageScale none).
 * Paper: arXiv:2503.20783, section 3.1 and listing 1 (masked_mean with a constant).
 */
export const drGrpo: Loss = grpo;
