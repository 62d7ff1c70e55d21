/**
 * Layers of Qwen2-VL with adapters beside some of their products: the same for a pack of training, a prefill and a decode step, so that sampler and
 * trainer agree. A layer without adapters is text.ts's and vision.ts's. Letters as there.
 */

import { op } from "../../torch/dispatch.ts";
import { add, reshape } from "../../torch/ops.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { AttentionPlan, FusedAttentionPlan } from "../attention.ts";
import { adapted } from "../lora.ts";
import { type RopeTable, rotateCut } from "../rope.ts";
import { headDim, type Qwen2VLConfig } from "./config.ts";
import type { TextLayerLora, TextLayerWeights, VisionBlockLora, VisionBlockWeights } from "./parameters.ts";
import { attend, linear, linearResidual, rmsNorm, swigluDown } from "./text-ops.ts";
import { affine, frameAttention, norm, quickGelu, type VisionBatch } from "./vision-ops.ts";

const swiglu = op("grove::swiglu");

/** One decoder layer, x [T, X] to [T, X]. @param dropout a word for each row, int32 [T]; null: nothing is dropped */
export function loraTextLayer(
  x: Tensor,
  weights: TextLayerWeights,
  lora: TextLayerLora,
  config: Qwen2VLConfig,
  rope: RopeTable,
  plan: AttentionPlan | FusedAttentionPlan,
  index: number,
  dropout: Tensor | null,
): Tensor {
  const { numHeads: H, numKvHeads: K, rmsNormEps } = config.text;
  const T = x.size(0);
  const D = headDim(config);
  const normed = rmsNorm(x, weights.inputNorm, rmsNormEps);
  const product = adapted(linear(normed, weights.qkv, weights.qkvBias), normed, lora.qkv, dropout);
  const qkv = reshape(product, [T, H + 2 * K, D]);
  const heads =
    "attendProjections" in plan
      ? plan.attendProjections(index, qkv, rope)
      : attend(qkv, rope, plan, index, K, /* ownValues */ false);
  const attended = reshape(heads, [T, H * D]);
  const h = adapted(linearResidual(attended, weights.o, x), attended, lora.o, dropout);
  const normed2 = rmsNorm(h, weights.mlpNorm, rmsNormEps);
  const gateUp = adapted(linear(normed2, weights.gateUp, null), normed2, lora.gateUp, dropout);
  const out = swigluDown(h, gateUp, weights.down);
  return lora.down === undefined ? out : adapted(out, swiglu(gateUp), lora.down, dropout);
}

/** One block of the vision tower, x [N, E] to [N, E]. */
export function loraVisionBlock(
  x: Tensor,
  weights: VisionBlockWeights,
  lora: VisionBlockLora,
  config: Qwen2VLConfig,
  { rope, runs }: VisionBatch,
  dropout: Tensor | null,
): Tensor {
  const { embedDim: E, numHeads: A } = config.vision;
  const N = x.size(0);
  const normed = norm(x, weights.norm1);
  const product = adapted(affine(normed, weights.qkv), normed, lora.qkv, dropout);
  const attended = reshape(frameAttention(...rotateCut(reshape(product, [N, 3 * A, E / A]), rope, A, false), runs), [
    N,
    E,
  ]);
  const h = add(x, adapted(affine(attended, weights.proj), attended, lora.proj, dropout));
  const normed2 = norm(h, weights.norm2);
  const up = quickGelu(adapted(affine(normed2, weights.fc1), normed2, lora.fc1, dropout));
  return add(h, adapted(affine(up, weights.fc2), up, lora.fc2, dropout));
}
