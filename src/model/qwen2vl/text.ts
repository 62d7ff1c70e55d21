/**
 * The language model of Qwen2-VL: a pre-norm decoder with grouped-query attention, biases on q, k and v, M-RoPE and SwiGLU.
 * Written once; how rows attend is the plan's business, what is recorded for the backward is the step's.
 *
 * Shapes: T rows, X hidden size, H query heads, K key-value heads, D head size, I intermediate size.
 */

import { ConfigError, ShapeError } from "../../errors.ts";
import { op, opN } from "../../torch/dispatch.ts";
import { indexCopy_, reshape } from "../../torch/ops.ts";
import { fromArray, type Tensor } from "../../torch/tensor.ts";
import type { AttentionPlan, FusedAttentionPlan } from "../attention.ts";
import type { RopeTable } from "../rope.ts";
import type { Recompute, Step } from "../tape.ts";
import { headDim, type Qwen2VLConfig } from "./config.ts";
import { loraTextLayer } from "./lora-layers.ts";
import { PARTS, type TextLayerWeights, type TextWeights } from "./parameters.ts";
import { attend, linear, linearResidual, linearResidualHalves, linearSwiglu, rmsNorm, swigluDown } from "./text-ops.ts";

const normLinear = opN("grove::norm_linear");
const swigluMlp = op("grove::swiglu_mlp");
const embedding = op("grove::embedding");

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
  if ("attendProjections" in plan)
    return decodeLayer(x, weights, rmsNormEps, (qkv) =>
      plan.attendProjections(index, reshape(qkv, [T, H + 2 * K, D]), rope),
    );
  const [qkv, fork] = projected(x, weights.inputNorm, rmsNormEps, weights.qkv, weights.qkvBias, !selective);
  const attended = attend(reshape(qkv, [T, H + 2 * K, D]), rope, plan, index, K, selective);
  const h = linearResidual(reshape(attended, [T, H * D]), weights.o, fork);
  if (recompute === "mlp") return swigluMlp(h, weights.mlpNorm, rmsNormEps, weights.gateUp, weights.down);
  const [gateUp, fork2] = projected(h, weights.mlpNorm, rmsNormEps, weights.gateUp, null, !selective);
  return swigluDown(fork2, gateUp, weights.down);
}

/** linear(norm(x)), and x again for its residual: so both of its gradients meet in the norm's backward. `keep` the norm for it. */
function projected(
  x: Tensor,
  norm: Tensor,
  eps: number,
  weight: Tensor,
  bias: Tensor | null,
  keep: boolean,
): [product: Tensor, x: Tensor] {
  return normLinear(x, norm, null, eps, weight, bias, keep) as [Tensor, Tensor];
}

/** A layer of a decode step, which keeps nothing for a backward: gate, up and SwiGLU are one kernel. */
function decodeLayer(x: Tensor, weights: TextLayerWeights, eps: number, attend: (qkv: Tensor) => Tensor): Tensor {
  const attended = attend(linear(rmsNorm(x, weights.inputNorm, eps), weights.qkv, weights.qkvBias));
  const h = linearResidual(reshape(attended, [x.size(0), attended.size(1) * attended.size(2)]), weights.o, x);
  return linearResidualHalves(linearSwiglu(rmsNorm(h, weights.mlpNorm, eps), weights.gateUp), weights.down, h);
}

/** All layers, without the final norm. `x` stays the caller's. @param dropout of adapters: a word for each row, int32 [T]; null: nothing is dropped */
export function textLayers(
  x: Tensor,
  weights: TextWeights,
  config: Qwen2VLConfig,
  rope: RopeTable,
  plan: AttentionPlan | FusedAttentionPlan,
  step: Step,
  recompute: Recompute = "none",
  dropout: Tensor | null = null,
): Tensor {
  let hidden = x;
  weights.layers.forEach((layer, i) => {
    const run = (input: Tensor | null) =>
      layer.lora === undefined
        ? textLayer(input as Tensor, layer, config, rope, plan, i, recompute)
        : loraTextLayer(input as Tensor, layer, layer.lora, config, rope, plan, i, dropout);
    const next = step(hidden, run, PARTS.layer(i));
    if (hidden !== x) hidden.free();
    hidden = next;
  });
  return hidden;
}

/**
 * Token embeddings [T, X] with media features in the rows of their placeholders: image features fill the image placeholders in order,
 * then video features the video placeholders, over all of `ids`. Ids that are on the device already (int64) are text only.
 * @throws ShapeError when there are not as many features as placeholders; ConfigError for an id that the model does not have, which a CUDA device would
 * answer by failing for good
 */
export function embedTokens(
  ids: Int32Array | Tensor,
  features: Tensor | null,
  weights: TextWeights,
  config: Qwen2VLConfig,
): Tensor {
  const replaced = [config.imageTokenId, config.videoTokenId]; // get no gradient
  if (!(ids instanceof Int32Array)) return embedding(weights.embedding, ids, replaced);
  const device = weights.embedding.device;
  const rows = placeholderRows(ids, config);
  const out = embedding(weights.embedding, fromArray(ids, [ids.length], { dtype: "int64", device }), replaced);
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
  const { vocabSize } = config.text;
  const images: number[] = [];
  const videos: number[] = [];
  ids.forEach((id, row) => {
    if (id < 0 || id >= vocabSize)
      throw new ConfigError(
        `token id ${id} is not in the model's vocabulary of ${vocabSize}: is the tokenizer another model's?`,
      );
    if (id === config.imageTokenId) images.push(row);
    else if (id === config.videoTokenId) videos.push(row);
  });
  return Int32Array.from([...images, ...videos]);
}
