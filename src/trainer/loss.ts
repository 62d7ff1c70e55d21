import type { Config } from "../config/schema.ts";
import { enableGrad, grad } from "../torch/autograd.ts";
import { op } from "../torch/dispatch.ts";
import { abs, add, amax, cat, detach, mul, neg, reshape, stack, sub, sum, to } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Metrics } from "../types.ts";
import { klOfTokens } from "./kl.ts";
import { importanceRatio } from "./losses/importance-ratio.ts";
import { LOSSES } from "./losses/table.ts";

const nanToNum = op("aten::nan_to_num"); // (x, what NaN becomes, what infinity becomes)

/** Everything the loss of one pack is computed from; T = completion tokens of the pack, all tensors [T] and of one float dtype. */
export interface LossInputs {
  logprobs: Tensor; // policy, nats
  entropy: Tensor; // of the policy's next-token distribution, nats
  /** log-probabilities before the first update from this batch; null where that is the policy itself (first update). */
  oldLogprobs: Tensor | null;
  referenceLogprobs: Tensor | null; // null where the loss has no KL penalty
  samplerLogprobs: Tensor; // NaN where the sampler drew nothing: no gap there
  advantages: Tensor;
  weights: Tensor; // share of the token in the loss of the batch
  lengths: readonly number[]; // of the pack's completions, in the order of their tokens; they sum to T
}

/** Names of `PolicyLoss.stats`, in order. All but the last are sums over the pack of weight times value: over packs they add up to means. */
export const LOSS_STATS = ["policy", "kl", "entropy", "clipLow", "clipHigh", "gap", "gapMax"] as const;

export interface PolicyLoss {
  /** d loss / d logprobs, [T]: what the model's backward pass starts from. */
  gradient: Tensor;
  /** d loss / d entropy, [T]; null without an entropy bonus. */
  entropyGradient: Tensor | null;
  stats: Tensor; // [7], see LOSS_STATS
}

/**
 * The loss of one pack and its gradient by the policy's log-probabilities and entropies.
 *
 *   loss = sum_t w_t (-objective_t + klCoef kl_t - entropyCoef H_t)
 *
 * objective_t is what trainer.loss says (losses/table.ts): with grpo min(rho_t A_t, clip(rho_t, 1 - epsLow, 1 + epsHigh) A_t), rho_t = exp(logp_t - old_t).
 * kl_t is an estimate from d_t = clamp(ref_t - logp_t, -klClamp, klClamp), with k3 exp(d_t) - d_t - 1: no gradient beyond the clamp (kl.ts).
 *
 * Paper: DeepSeekMath arXiv:2402.03300 eq. 3 and 4. In the first update from a batch old_t is logp_t without gradient and rho is 1.
 * The graph holds nothing but vectors over tokens; the model's own backward starts from the gradients.
 */
export function policyLoss(inputs: LossInputs, config: Config["trainer"]): PolicyLoss {
  return scope(() => {
    const { advantages, weights } = inputs;
    const logprobs = detach(inputs.logprobs).setRequiresGrad(true);
    const current = detach(inputs.logprobs);
    const first = inputs.oldLogprobs === null;
    const loss = LOSSES[config.loss];

    const { policy, kl, ratio, gradient } = enableGrad(() => {
      const lengths = config.ratio === "sequence" && !first ? inputs.lengths : null;
      const ratio = importanceRatio(logprobs, inputs.oldLogprobs ?? current, lengths); // [T]
      const policy = neg(sum(mul(loss.objective({ logprobs, ratio, advantages, first }, config), weights))); // []
      const kl = inputs.referenceLogprobs && sum(mul(klOfTokens(inputs.referenceLogprobs, logprobs, config), weights)); // []
      const total = kl === null ? policy : add(policy, mul(kl, config.klCoef));
      const [gradient] = grad([total], [logprobs], [null]);
      return { policy: detach(policy), kl: kl && detach(kl), ratio: detach(ratio), gradient: gradient as Tensor };
    });

    const weighted = (values: Tensor) => sum(mul(to(values, { dtype: current.dtype }), weights)); // []
    const none = sum(mul(weights, 0));
    const gap = nanToNum(abs(sub(inputs.samplerLogprobs, current)), 0, Number.POSITIVE_INFINITY); // [T]
    const clipped = first ? null : loss.clipped({ ratio, advantages }, config);
    const [low, high] = clipped === null ? [none, none] : [weighted(clipped.low), weighted(clipped.high)];
    const stats = stack([policy, kl ?? none, weighted(inputs.entropy), low, high, weighted(gap), amax(gap)], 0);
    const entropyGradient = config.entropyCoef === 0 ? null : mul(weights, -config.entropyCoef);
    return { gradient, entropyGradient, stats };
  });
}

/**
 * Metrics of an update from the stats of its packs: `loss/policy`, `loss/kl` (nats per token, not yet weighted by klCoef; 0 where the penalty is in the
 * reward), `loss/total`, `loss/entropy`, clip fractions, and how far the sampler's log-probabilities are from the trainer's.
 */
export function lossMetrics(
  packs: readonly (readonly number[])[],
  { klCoef, entropyCoef }: Pick<Config["trainer"], "klCoef" | "entropyCoef">,
): Metrics {
  const column = (name: (typeof LOSS_STATS)[number]) => packs.map((stats) => stats[LOSS_STATS.indexOf(name)] as number);
  const total = (name: (typeof LOSS_STATS)[number]) => column(name).reduce((sum, value) => sum + value, 0);
  const withKl = total("policy") + klCoef * total("kl");
  return {
    "loss/total": entropyCoef === 0 ? withKl : withKl - entropyCoef * total("entropy"),
    "loss/policy": total("policy"),
    "loss/kl": total("kl"),
    "loss/entropy": total("entropy"),
    "loss/clip_low_frac": total("clipLow"),
    "loss/clip_high_frac": total("clipHigh"),
    "rollout/logprob_gap_mean": total("gap"),
    "rollout/logprob_gap_max": Math.max(...column("gapMax")),
  };
}

/** The values of several small float tensors in one copy from the device. */
export function readTogether(tensors: readonly Tensor[]): number[][] {
  const values = scope(() => cat(tensors.map((tensor) => reshape(tensor, [-1]))).toNumbers());
  let start = 0;
  return tensors.map(({ numel }) => {
    start += numel;
    return values.slice(start - numel, start);
  });
}
