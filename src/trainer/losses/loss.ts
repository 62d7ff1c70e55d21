/** What the losses of this folder have in common. */

import type { Config } from "../../config/schema.ts";
import type { Tensor } from "../../torch/tensor.ts";

/** Everything about T completion tokens that a loss may look at; [T] each, of one float dtype. */
export interface Terms {
  logprobs: Tensor; // of the policy, nats; the gradient goes here
  /** Policy / policy that sampled: of the token, or of its completion (trainer.ratio). Carries the gradient of log-probabilities too. */
  ratio: Tensor;
  advantages: Tensor;
  /** No update from this batch yet: every ratio is 1, and nothing can be clipped. */
  first: boolean;
}

/**
 * One loss. How much each token counts is not its business: token-weights.ts divides, by numbers of the whole batch.
 * The loss of a batch is -sum_t weight_t objective_t.
 */
export interface Loss {
  /** What is to become large, for each token, [T]. */
  objective(terms: Terms, config: Config["trainer"]): Tensor;
  /** Tokens whose gradient is bounded because the ratio has become too small or too large, [T] of 0 and 1; null where that never happens. */
  clipped(terms: Omit<Terms, "logprobs" | "first">, config: Config["trainer"]): { low: Tensor; high: Tensor } | null;
}
