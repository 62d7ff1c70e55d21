import type { Config } from "../config/schema.ts";
import { enableGrad, grad } from "../torch/autograd.ts";
import { op } from "../torch/dispatch.ts";
import {
  abs,
  add,
  amax,
  cat,
  clamp,
  detach,
  exp,
  gt,
  lt,
  minimum,
  mul,
  neg,
  reshape,
  stack,
  sub,
  sum,
  to,
} from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Metrics } from "../types.ts";

const nanToNum = op("aten::nan_to_num"); // (x, what NaN becomes, what infinity becomes)
const expm1 = op("aten::expm1");

/** Everything the loss of one pack is computed from; T = completion tokens of the pack, all tensors [T] and of one float dtype. */
export interface LossInputs {
  logprobs: Tensor; // policy, nats
  entropy: Tensor; // of the policy's next-token distribution, nats; reported only
  /** log-probabilities before the first update from this batch; null where that is the policy itself (first update). */
  oldLogprobs: Tensor | null;
  referenceLogprobs: Tensor | null; // null when klCoef is 0
  samplerLogprobs: Tensor; // NaN where the sampler drew nothing: no gap there
  advantages: Tensor;
  weights: Tensor; // share of the token in the loss of the batch
}

/** Names of `GrpoLoss.stats`, in order. All but the last are sums over the pack of weight times value: over packs they add up to means. */
export const LOSS_STATS = ["policy", "kl", "entropy", "clipLow", "clipHigh", "gap", "gapMax"] as const;

export interface GrpoLoss {
  /** d loss / d logprobs, [T]: what the model's backward pass starts from. */
  gradient: Tensor;
  stats: Tensor; // [7], see LOSS_STATS
}

/**
 * The GRPO loss of one pack and its gradient by the policy's log-probabilities.
 *
 *   loss   = sum_t w_t (-min(rho_t A_t, clip(rho_t, 1 - epsLow, 1 + epsHigh) A_t) + klCoef k3_t)
 *   rho_t  = exp(logp_t - old_t)
 *   k3_t   = exp(d_t) - d_t - 1,  d_t = clamp(ref_t - logp_t, -klClamp, klClamp): no gradient beyond the clamp
 *
 * Paper: DeepSeekMath arXiv:2402.03300 eq. 3 and 4; separate clip bounds: DAPO arXiv:2503.14476. In the first update from a batch old_t is
 * logp_t without gradient, rho is 1 and nothing is clipped: the seed's exp(logp - sg(logp)) A. Its value is then -sum w A, whose gradient
 * does not vanish where the value does.
 * The graph holds nothing but vectors over tokens; the model's own backward starts from `gradient`.
 */
export function grpoLoss(inputs: LossInputs, config: Config["trainer"]): GrpoLoss {
  return scope(() => {
    const { advantages, weights } = inputs;
    const logprobs = detach(inputs.logprobs).setRequiresGrad(true);
    const current = detach(inputs.logprobs);
    const first = inputs.oldLogprobs === null;

    const { policy, kl, ratio, gradient } = enableGrad(() => {
      const ratio = exp(sub(logprobs, inputs.oldLogprobs ?? current)); // [T]
      const clipped = clamp(ratio, 1 - config.epsLow, 1 + config.epsHigh);
      const surrogate = first ? mul(ratio, advantages) : minimum(mul(ratio, advantages), mul(clipped, advantages));
      const policy = neg(sum(mul(surrogate, weights))); // []
      const kl = inputs.referenceLogprobs && sum(mul(k3(inputs.referenceLogprobs, logprobs, config.klClamp), weights)); // []
      const loss = kl === null ? policy : add(policy, mul(kl, config.klCoef));
      const [gradient] = grad([loss], [logprobs], [null]);
      return { policy: detach(policy), kl: kl && detach(kl), ratio: detach(ratio), gradient: gradient as Tensor };
    });

    const weighted = (values: Tensor) => sum(mul(to(values, { dtype: current.dtype }), weights)); // []
    const none = sum(mul(weights, 0));
    const gap = nanToNum(abs(sub(inputs.samplerLogprobs, current)), 0, Number.POSITIVE_INFINITY); // [T]
    // A token is clipped where the ratio has left the band on the side its advantage pushes to.
    const clipLow = first ? none : weighted(mul(lt(ratio, 1 - config.epsLow), lt(advantages, 0)));
    const clipHigh = first ? none : weighted(mul(gt(ratio, 1 + config.epsHigh), gt(advantages, 0)));
    const stats = stack([policy, kl ?? none, weighted(inputs.entropy), clipLow, clipHigh, weighted(gap), amax(gap)], 0);
    return { gradient, stats };
  });
}

/**
 * The k3 estimate of KL(policy || reference) at each token: exp(d) - d - 1 with d = clamp(reference - policy, -limit, limit).
 * Never negative, and unbiased inside the clamp for tokens drawn from the policy (http://joschu.net/blog/kl-approx.html).
 *
 * Written with expm1: for the small d of a young policy exp(d) - d - 1 is mostly rounding. In float32, over d of standard deviation 1e-3,
 * it is off by 8.5 % of the mean at each token, expm1(d) - d by 0.005 %; at 1e-4 even its mean over 200,000 tokens comes out negative.
 */
export function k3(referenceLogprobs: Tensor, logprobs: Tensor, limit: number): Tensor {
  const d = clamp(sub(referenceLogprobs, logprobs), -limit, limit);
  return sub(expm1(d), d);
}

/**
 * Metrics of an update from the stats of its packs: `loss/policy`, `loss/kl` (nats per token, not yet weighted by klCoef), `loss/total`,
 * `loss/entropy`, clip fractions, and how far the sampler's log-probabilities are from the trainer's.
 */
export function lossMetrics(packs: readonly (readonly number[])[], klCoef: number): Metrics {
  const column = (name: (typeof LOSS_STATS)[number]) => packs.map((stats) => stats[LOSS_STATS.indexOf(name)] as number);
  const total = (name: (typeof LOSS_STATS)[number]) => column(name).reduce((sum, value) => sum + value, 0);
  return {
    "loss/total": total("policy") + klCoef * total("kl"),
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
