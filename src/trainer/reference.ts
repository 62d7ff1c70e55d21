import type { Packed } from "../model/packed.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { CheckpointFile } from "./checkpoint.ts";
import type { Move } from "./moving-reference.ts";
import type { VisionFeatures } from "./vision-features.ts";

/**
 * The reference policy, what a KL penalty and GRPO-CARE's bonus measure the policy against: the policy as it was before the first step, or as far as it
 * has moved since.
 */
export interface Reference extends Disposable {
  /** Features of pictures and videos that its passes take; the policy's own where the towers are one; null: each pass computes them. */
  readonly features: VisionFeatures | null;
  /** Log-probabilities of each pack's sampled tokens, float32 [Tc]; the caller's. All ranks call it at the same point, with any number of packs. */
  logprobs(packs: readonly Packed[]): Promise<Tensor[]>;
  /** Moves it towards the policy, in place (moving-reference.ts). All ranks call it at the same point. */
  move(policy: readonly Parameter[], how: Move): void;
  /** This rank's part of a checkpoint. */
  files(): CheckpointFile[];
}
