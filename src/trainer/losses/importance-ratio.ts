import { cat, detach, exp, expand, mean, mul, split, sub } from "../../torch/ops.ts";
import type { Tensor } from "../../torch/tensor.ts";

/**
 * Policy / old policy at each token, [T]: exp(logp - old). In the first update from a batch `old` is the policy itself, without gradient.
 *
 * With `lengths`, the tokens of each completion in turn, the ratio of a completion in place of its tokens': exp(mean of logp - old), with the
 * token's own gradient (gspo.ts). The means are taken completion by completion: they do not depend on what else is in a pack, nor, on CUDA, on
 * the order in which threads add.
 */
export function importanceRatio(logprobs: Tensor, old: Tensor, lengths: readonly number[] | null): Tensor {
  if (lengths === null) return exp(sub(logprobs, old));
  const current = detach(logprobs);
  const means = split(sub(current, old), lengths).map((part) => expand(mean(part, 0, true), part.shape));
  return mul(exp(cat(means)), exp(sub(logprobs, current)));
}
