/**
 * The language model of Qwen2-VL: a pre-norm decoder with grouped-query attention, biases on q, k and v, M-RoPE and SwiGLU.
 * Written once; how rows attend is the plan's business, what is recorded for the backward is the step's.
 *
 * Shapes: T rows, X hidden size, H query heads, K key-value heads, D head size, I intermediate size.
 */

import { ShapeError } from "../../errors.ts";
import { op } from "../../torch/dispatch.ts";
import { contiguous, embedding, indexCopy_, reshape, split } from "../../torch/ops.ts";
import { fromArray, type Tensor } from "../../torch/tensor.ts";
import type { AttentionPlan, FusedAttentionPlan } from "../attention.ts";
import { type RopeTable, rotate } from "../rope.ts";
import type { Recompute, Step } from "../tape.ts";
import { headDim, type Qwen2VLConfig } from "./config.ts";
import type { TextLayerWeights, TextWeights } from "./parameters.ts";

const swigluDown = op("grove::swiglu_down");
const rmsNormOp = op("grove::rms_norm");
const normLinear = op("grove::norm_linear");
const swigluMlp = op("grove::swiglu_mlp");
const linearResidual = op("grove::linear_residual");
const linearResidualHalves = op("grove::linear_residual_halves");
const linearSwiglu = op("grove::linear_swiglu");
/** x weight^T + bias; native/skinny_linear.cc tells what few rows do otherwise. */
export const linear = op("grove::linear");

/** x / sqrt(mean(x^2) + eps) * weight over the last dimension; native/layers.cc says why not aten::rms_norm. */
export const rmsNorm = (x: Tensor, weight: Tensor, eps: number): Tensor => rmsNormOp(x, weight, eps);

/** One decoder layer, x [T, X] to [T, X]. `recompute` changes what its graph keeps (model/recompute.ts), not a bit of what comes out. */
export function textLayer(
  x: Tensor,
  weights: TextLayerWeights,
  config: Qwen2VLConfig,
  rope: RopeTable,
  plan: AttentionPlan | FusedAttentionPlan,
  index: number,
  recompute: Recompute = "none",
): Tensor {
  const { numHeads: H, numKvHeads: K, rmsNormEps } = config.text;
  const T = x.size(0);
  const D = headDim(config);
  const selective = recompute === "norms" || recompute === "mlp";
  const projected = selective
    ? normLinear(x, weights.inputNorm, null, rmsNormEps, weights.qkv, weights.qkvBias)
    : linear(rmsNorm(x, weights.inputNorm, rmsNormEps), weights.qkv, weights.qkvBias);
  const qkv = reshape(projected, [T, H + 2 * K, D]);
  const attended = reshape(attend(qkv, rope, plan, index, [H, K], selective), [T, H * D]);
  const h = linearResidual(attended, weights.o, x);
  if (recompute === "mlp") return swigluMlp(h, h, weights.mlpNorm, rmsNormEps, weights.gateUp, weights.down);
  if (recompute === "norms")
    return swigluDown(h, normLinear(h, weights.mlpNorm, null, rmsNormEps, weights.gateUp, null), weights.down);
  const normed = rmsNorm(h, weights.mlpNorm, rmsNormEps);
  // A decode step keeps nothing for a backward: gate, up and SwiGLU are one kernel.
  if ("attendProjections" in plan) return linearResidualHalves(linearSwiglu(normed, weights.gateUp), weights.down, h);
  return swigluDown(h, linear(normed, weights.gateUp, null), weights.down);
}

/** qkv [T, H + 2 K, D] to [T, H, D]. `ownValues`: a graph holds a copy of v then, not all of qkv for its sake. */
function attend(
  qkv: Tensor,
  rope: RopeTable,
  plan: AttentionPlan | FusedAttentionPlan,
  index: number,
  [H, K]: [number, number],
  ownValues: boolean,
): Tensor {
  if ("attendProjections" in plan) return plan.attendProjections(index, qkv, rope);
  const [unrotated, v] = split(qkv, [H + K, K], 1) as [Tensor, Tensor];
  const [q, k] = split(rotate(unrotated, rope), [H, K], 1) as [Tensor, Tensor];
  return plan.attend(index, q, k, ownValues ? contiguous(v) : v);
}

/** All layers, without the final norm. `x` stays the caller's. */
export function textLayers(
  x: Tensor,
  weights: TextWeights,
  config: Qwen2VLConfig,
  rope: RopeTable,
  plan: AttentionPlan | FusedAttentionPlan,
  step: Step,
  recompute: Recompute = "none",
): Tensor {
  let hidden = x;
  weights.layers.forEach((layer, i) => {
    const next = step(hidden, (input) => textLayer(input as Tensor, layer, config, rope, plan, i, recompute));
    if (hidden !== x) hidden.free();
    hidden = next;
  });
  return hidden;
}

/**
 * Token embeddings [T, X] with media features in the rows of their placeholders: image features fill the image placeholders in order,
 * then video features the video placeholders, over all of `ids`. Ids that are on the device already (int64) are text only.
 * @throws ShapeError when there are not as many features as placeholders.
 */
export function embedTokens(
  ids: Int32Array | Tensor,
  features: Tensor | null,
  weights: TextWeights,
  config: Qwen2VLConfig,
): Tensor {
  if (!(ids instanceof Int32Array)) return embedding(weights.embedding, ids);
  const device = weights.embedding.device;
  const out = embedding(weights.embedding, fromArray(ids, [ids.length], { dtype: "int64", device }));
  const rows = placeholderRows(ids, config);
  if (rows.length !== (features?.size(0) ?? 0)) {
    throw new ShapeError(
      "embed",
      `features of ${rows.length} placeholder tokens, [${rows.length}, ${config.text.hiddenSize}]`,
      features?.shape ?? [0],
    );
  }
  return features === null
    ? out
    : indexCopy_(out, 0, fromArray(rows, [rows.length], { dtype: "int64", device }), features);
}

function placeholderRows(ids: Int32Array, config: Qwen2VLConfig): Int32Array {
  const images: number[] = [];
  const videos: number[] = [];
  ids.forEach((id, row) => {
    if (id === config.imageTokenId) images.push(row);
    else if (id === config.videoTokenId) videos.push(row);
  });
  return Int32Array.from([...images, ...videos]);
}
