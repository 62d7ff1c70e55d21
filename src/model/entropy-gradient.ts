import { add, clamp_, copy_, emptyLike, exp, mul, neg, slice, sub, to } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";

/** Logits that are worked on at a time, so that float32 copies of all never exist. */
const SLICE_LOGITS = 2 ** 25;

/**
 * d(sum of dEntropy * entropy) / d(logits): with p the softmax and H its entropy, -dEntropy p (log p + H). Of the type of `logits`, computed in that of
 * the softmax.
 * @param logits [C, V]
 * @param logSum log of the sum of exp(logits) per row, [C, 1]; as `entropy` and `dEntropy`, [C, 1], in the softmax's type: float32 or float64
 */
export function entropyGradient(
  logits: Tensor,
  logSum: Tensor,
  entropy: Tensor,
  dEntropy: Tensor,
  sliceLogits = SLICE_LOGITS,
): Tensor {
  const gradient = emptyLike(logits);
  const [rows, vocab] = [logits.size(0), logits.size(1)];
  const step = Math.max(1, Math.floor(sliceLogits / vocab));
  for (let begin = 0; begin < rows; begin += step) {
    scope(() => {
      const part = (x: Tensor) => slice(x, 0, begin, Math.min(rows, begin + step));
      // what is minus infinity has the probability 0, which times infinity would be NaN
      const logp = clamp_(sub(to(part(logits), { dtype: logSum.dtype }), part(logSum)), -1e4);
      copy_(part(gradient), mul(mul(exp(logp), add(logp, part(entropy))), neg(part(dEntropy))));
    });
  }
  return gradient;
}
