import { grpo } from "./grpo.ts";
import type { Loss } from "./loss.ts";

/**
 * GRPO's terms as a mean over all tokens, so that a token of a long completion counts as much as one of a short completion. TRL's `bnpo` takes
 * that mean over the tokens of one device's micro-batch; a step here is one batch, however it is packed or spread over ranks, and the mean
 * is over all of it: what TRL's bnpo gives where one micro-batch holds the step. Differs from dapo in the bounds of the clip alone.
 * Source: TRL, `loss_type` of trl/trainer/grpo_config.py; not the Beta normalisation of arXiv:2506.02864, which has the same name.
 */
export const bnpo: Loss = grpo;
