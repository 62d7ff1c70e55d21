/**
 * A low-rank adapter beside a frozen product, y = x W^T + scale (x A^T) B^T (LoRA, arXiv:2106.09685). The two skinny products stay beside W in training
 * and in sampling, so that W keeps every bit: the model without its adapter is the reference policy, in the same memory.
 */

import { op } from "../torch/dispatch.ts";
import { arange, cast, mul, reshape, sub } from "../torch/ops.ts";
import type { Tensor } from "../torch/tensor.ts";

const linear = op("grove::linear");
const linearResidual = op("grove::linear_residual");
const loraAdd_ = op("grove::lora_add_");
const loraLinear = op("grove::lora_linear");
const bitwiseXor = op("aten::bitwise_xor.Tensor");
const xor_ = op("aten::bitwise_xor_.Tensor");
const and_ = op("aten::bitwise_and_.Scalar");
const shifted = op("aten::bitwise_right_shift.Tensor_Scalar");
const lowerThan = op("aten::lt.Scalar");

/** The adapter beside one weight, which may be several projections side by side. */
export interface LoraPair {
  a: Tensor; // [n rank, K], one projection's rows after the other's
  b: Tensor; // [M, rank]
  /** Of each projection: the columns of the product that are its own, [begin, end), flat. */
  spans: readonly number[];
  scale: number;
  dropout: number;
  /** Which adapter this is, in the masks of dropout. */
  key: number;
}

/** x weight^T, with a bias or a residual or neither, and what the adapter says of x [T, K]. @param rows see `dropped`; null: nothing is dropped */
export function adaptedLinear(
  x: Tensor,
  weight: Tensor,
  { bias = null, residual = null }: { bias?: Tensor | null; residual?: Tensor | null },
  pair: LoraPair | undefined,
  rows: Tensor | null,
): Tensor {
  if (pair !== undefined && !drops(pair, rows)) return loraLinear(x, weight, bias, residual, ...factors(pair));
  const y = residual === null ? linear(x, weight, bias) : linearResidual(x, weight, residual);
  return pair === undefined ? y : addOfDropped(y, x, pair, rows as Tensor);
}

/** Whether a pass with these words for its rows drops inputs of the adapter. */
export const drops = (pair: LoraPair, rows: Tensor | null): boolean => rows !== null && pair.dropout > 0;

/** Adds what the adapter says of what dropout leaves of x [T, K] to y [T, N], in place. */
export function addOfDropped(y: Tensor, x: Tensor, pair: LoraPair, rows: Tensor): Tensor {
  return loraAdd_(y, dropped(x, rows, pair), ...factors(pair));
}

/** A pair as the operators of native/lora.cc and lora_linear.cc take it, last. */
export const factors = ({ a, b, spans, scale }: LoraPair) => [a, b, spans, scale] as const;

/**
 * x with a share of its values set to 0 and the rest divided by 1 - dropout. Which ones is a function of the row's word, of the adapter and of the
 * column: whoever runs the same pass again, in other company, drops the same ones.
 * @param rows a word for each row, int32 [T]
 */
export function dropped(x: Tensor, rows: Tensor, { dropout, key }: Pick<LoraPair, "dropout" | "key">): Tensor {
  const columns = mul(arange(0, x.size(1), { dtype: "int32", device: x.device }), 0x9e3779b1 | 0);
  let h = bitwiseXor(reshape(mixed(bitwiseXor(rows, scalarLike(rows, key))), [-1, 1]), columns); // [T, K]
  h = mixed(h);
  and_(h, 0xffffff);
  const kept = sub(mul(cast(lowerThan(h, Math.round(dropout * 2 ** 24)), x.dtype), -1), -1); // 0 or 1
  return mul(x, mul(kept, 1 / (1 - dropout)));
}

/** MurmurHash3's finalizer, on int32 that wraps around. */
function mixed(words: Tensor): Tensor {
  const h = bitwiseXor(words, logicalShift(words, 16));
  const g = mul(h, 0x85ebca6b | 0);
  xor_(g, logicalShift(g, 13));
  const f = mul(g, 0xc2b2ae35 | 0);
  return xor_(f, logicalShift(f, 16));
}

function logicalShift(words: Tensor, bits: number): Tensor {
  return and_(shifted(words, bits), 2 ** (32 - bits) - 1);
}

function scalarLike(words: Tensor, value: number): Tensor {
  return mul(arange(1, 2, { dtype: "int32", device: words.device }), value | 0);
}
