/** Operators of the language model's layers, with and without adapters. */

import { op } from "../../torch/dispatch.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { AttentionPlan } from "../attention.ts";
import { type RopeTable, rotateCut } from "../rope.ts";

const rmsNormOp = op("grove::rms_norm");

/** residual + (silu(gate) * up) down^T for gate_up = [gate | up]. */
export const swigluDown = op("grove::swiglu_down");
/** residual + x weight^T. */
export const linearResidual = op("grove::linear_residual");
/** The same for a decode step: the sum over a long K in the halves that training takes too, no gradient. */
export const linearResidualHalves = op("grove::linear_residual_halves");
/** silu(x gate^T) * x up^T for weight = [gate | up], for a decode step. */
export const linearSwiglu = op("grove::linear_swiglu");
/** x weight^T + bias; native/skinny_linear.cc tells what few rows do otherwise. */
export const linear = op("grove::linear");

/** x / sqrt(mean(x^2) + eps) * weight over the last dimension; native/norm.cc says why not aten::rms_norm. */
export const rmsNorm = (x: Tensor, weight: Tensor, eps: number): Tensor => rmsNormOp(x, weight, eps);

/** qkv [T, H + 2 K, D] to [T, H, D]. `ownValues`: a graph holds a copy of v then, not all of qkv for its sake. */
export function attend(
  qkv: Tensor,
  rope: RopeTable,
  plan: AttentionPlan,
  index: number,
  K: number,
  ownValues: boolean,
): Tensor {
  const attended = plan.attendQkv?.(qkv, rope, K, ownValues) ?? null;
  if (attended !== null) return attended;
  const [q, k, v] = rotateCut(qkv, rope, K, ownValues);
  return plan.attend(index, q, k, v);
}
