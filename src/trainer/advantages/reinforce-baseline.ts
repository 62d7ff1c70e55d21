import type { Baseline } from "./baseline.ts";
import { grpo } from "./grpo.ts";

/**
 * r_i - mean(r) of its group, then divided by the standard deviation of all such differences in the batch (their mean is 0, since groups have one size).
 * Paper: REINFORCE++ with baseline, arXiv:2501.03262.
 */
export const reinforceBaseline: Baseline = { centre: grpo.centre, spreadOf: "centred" };
