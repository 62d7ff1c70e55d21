/**
 * Layers of Qwen2-VL with adapters beside some of their products. A decode step has operators of its own; native/lora_linear.cc tells why they come to
 * the bits of a pack of training. A layer without adapters is text.ts's and vision.ts's. Letters as there.
 */

import { op } from "../../torch/dispatch.ts";
import { add, reshape } from "../../torch/ops.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { AttentionPlan, FusedAttentionPlan } from "../attention.ts";
import { adaptedLinear, addOfDropped, drops, factors } from "../lora.ts";
import { type RopeTable, rotateCut } from "../rope.ts";
import { headDim, type Qwen2VLConfig } from "./config.ts";
import type { TextLayerLora, TextLayerWeights, VisionBlockLora, VisionBlockWeights } from "./parameters.ts";
import { attend, linearResidualHalves, linearSwiglu, rmsNorm, swigluDown } from "./text-ops.ts";
import { frameAttention, norm, quickGelu, type VisionBatch } from "./vision-ops.ts";

const swiglu = op("grove::swiglu");
const loraSwigluDown = op("grove::lora_swiglu_down");
const loraLinearResidualHalves = op("grove::lora_linear_residual_halves");
const loraLinearSwiglu = op("grove::lora_linear_swiglu");

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
  const product = adaptedLinear(normed, weights.qkv, { bias: weights.qkvBias }, lora.qkv, dropout);
  const qkv = reshape(product, [T, H + 2 * K, D]);
  const decodes = "attendProjections" in plan;
  const heads = decodes
    ? plan.attendProjections(index, qkv, rope)
    : attend(qkv, rope, plan, index, K, /* ownValues */ false);
  const h = adaptedLinear(reshape(heads, [T, H * D]), weights.o, { residual: x }, lora.o, dropout);
  const normed2 = rmsNorm(h, weights.mlpNorm, rmsNormEps);
  return decodes ? decodedMlp(h, normed2, weights, lora) : mlp(h, normed2, weights, lora, dropout);
}

/** h and what gate, up and down make of its norm. */
function mlp(
  h: Tensor,
  normed: Tensor,
  weights: TextLayerWeights,
  lora: TextLayerLora,
  dropout: Tensor | null,
): Tensor {
  const gateUp = adaptedLinear(normed, weights.gateUp, {}, lora.gateUp, dropout);
  if (lora.down === undefined) return swigluDown(h, gateUp, weights.down);
  if (!drops(lora.down, dropout)) return loraSwigluDown(h, gateUp, weights.down, ...factors(lora.down));
  return addOfDropped(swigluDown(h, gateUp, weights.down), swiglu(gateUp), lora.down, dropout as Tensor);
}

/** The same in a decode step, which keeps nothing for a backward and drops nothing: gate, up and SwiGLU are one kernel. */
function decodedMlp(h: Tensor, normed: Tensor, weights: TextLayerWeights, lora: TextLayerLora): Tensor {
  const { gateUp, down } = lora;
  const product =
    gateUp === undefined
      ? linearSwiglu(normed, weights.gateUp)
      : loraLinearSwiglu(normed, weights.gateUp, ...factors(gateUp));
  return down === undefined
    ? linearResidualHalves(product, weights.down, h)
    : loraLinearResidualHalves(product, weights.down, h, ...factors(down));
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
  const linear = (input: Tensor, site: "qkv" | "proj" | "fc1" | "fc2") =>
    adaptedLinear(input, weights[site].weight, { bias: weights[site].bias }, lora[site], dropout);
  const qkv = reshape(linear(norm(x, weights.norm1), "qkv"), [N, 3 * A, E / A]);
  const attended = reshape(frameAttention(...rotateCut(qkv, rope, A, false), runs), [N, E]);
  const h = add(x, linear(attended, "proj"));
  const up = quickGelu(linear(norm(h, weights.norm2), "fc1"));
  return add(h, linear(up, "fc2"));
}
