/** What the passes of an update take beside weights, gradients and optimizer: plain arithmetic over a pack's size and a model's shape. */

import type { Config } from "../config/schema.ts";
import { isVisionFrozen, loraOf } from "../config/trained-parts.ts";
import type { Packed } from "../model/packed.ts";
import type { RecomputePlan } from "../model/pass.ts";
import { patchWidth, type Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { loraSites } from "../model/qwen2vl/lora-sites.ts";
import { type LayerCost, loraKept, textLayerCost, visionBlockCost } from "../model/recompute.ts";
import type { Recompute } from "../model/tape.ts";

/** What decides how much a pass takes. */
export interface PackSize {
  tokens: number; // T
  completionTokens: number; // Tc
  patches: number; // N, before the merge
}

// As in src/model/lm-head.ts: bytes of the logits of one chunk, and up to how many bytes logits are kept for the backward.
export const CHUNK_BYTES = 2 ** 30;
export const KEEP_BYTES = 2 ** 31;
/** As in src/model/entropy-gradient.ts: logits that are worked on at a time, four float32 values each. */
const SLICE_LOGITS = 2 ** 25;

/** Of features of pictures that are kept, on the model's device: those of 200 questions of 729 tokens for Qwen2-VL-7B in bfloat16. */
export const KEPT_FEATURES_BYTES = 2 ** 30;

/** FLOPs that a device does in the time it moves a byte to or from its memory: about 800 TFLOP/s and 4 TB/s. */
const FLOPS_PER_BYTE = 200;

export function packSize({ ids, targets, groups }: Packed): PackSize {
  const media = groups.flatMap(({ prompt }) => [...prompt.images, ...prompt.videos]);
  const patches = media.reduce((sum, { grid: [t, h, w] }) => sum + t * h * w, 0);
  return { tokens: ids.length, completionTokens: targets.length, patches };
}

/**
 * What a pass keeps for its backward: every layer's share (src/model/recompute.ts) and the whole of what is made again at one of them, the one
 * that is just walked back. Beside the layers: hidden states of the completion tokens before and behind the final norm and their gradient, logits
 * where they are few enough to be kept, pixels of the patches.
 * Checked against resident memory after a forward on the CPU in float32 (what is made again left out), MiB computed and measured: text, 8 layers 512
 * wide, none 440 and 444, norms 338 and 342, mlp 151 and 154, layer 39 and 40; vision, 8 blocks 320 wide, 442 and 456, 206 and 215, 121 and 135, 21
 * and 26. Not checked on a GPU.
 */
export function activationBytes(
  { tokens: T, completionTokens: Tc, patches: N }: PackSize,
  config: Config,
  shape: Qwen2VLConfig,
  recompute: RecomputePlan,
): number {
  const bytes = bytesOf(config);
  const { text, vision } = shape;
  const adapters = adapterCosts(config, shape);
  const perToken = withAdapters(textLayerCost(shape, recompute.text), recompute.text, adapters.language);
  const perPatch = withAdapters(
    visionBlockCost(shape, recompute.vision, hasKernels(config)),
    recompute.vision,
    adapters.vision,
  );
  const layers = T * text.numLayers * (perToken.kept * bytes + perToken.kept32 * 4);
  const blocks = N * vision.depth * (perPatch.kept * bytes + perPatch.kept32 * 4);
  const trained = !isVisionFrozen(config);
  const made = Math.max(T * perToken.made, trained ? N * perPatch.made : 0);
  const head = 3 * Tc * text.hiddenSize;
  const logits = Tc * text.vocabSize * bytes;
  const kept = logits <= KEEP_BYTES ? logits : 0;
  const media = N * patchWidth(shape) + (N / vision.spatialMergeSize ** 2) * text.hiddenSize;
  return layers + (trained ? blocks : 0) + (made + head + media) * bytes + kept;
}

/**
 * The largest thing an update makes beside that and drops again: one chunk of the head or the gradient of one layer's MLP. Where kernels of the
 * project's own run, logits become their gradient in place (and were counted where they are kept), and gradients of parameters are added where they
 * belong. Elsewhere a chunk has logits, float32 logits, log-softmax, its exponential and the logits' gradient, and the gradient of the MLP's largest
 * matrix or of the embedding is whole before it is added.
 */
export function updateWorkspace(
  { tokens: T, completionTokens: Tc }: PackSize,
  config: Config,
  shape: Qwen2VLConfig,
): number {
  const bytes = bytesOf(config);
  const kernels = hasKernels(config);
  const { vocabSize: V, hiddenSize: X, intermediateSize: I } = shape.text;
  const rows = Math.min(Tc, Math.max(1, Math.floor(CHUNK_BYTES / (V * bytes))));
  const isKept = Tc * V * bytes <= KEEP_BYTES;
  const perLogit = kernels ? (isKept ? 0 : 2) : config.dtype === "bfloat16" ? 2 + 4 + 4 + 4 + 2 : 3 * 4; // float32 logits need no conversion
  const ofEntropy = config.trainer.entropyCoef > 0 ? rows * V * bytes + 4 * 4 * Math.min(rows * V, SLICE_LOGITS) : 0;
  const layer = T * (5 * I + 3 * X) * bytes;
  return kernels
    ? Math.max(rows * V * perLogit + ofEntropy, layer)
    : Math.max(rows * V * perLogit + ofEntropy, layer + 2 * I * X * bytes, V * X * bytes);
}

/** What is computed again, as a share of the layers' products in one forward; what is only moved counts as what could be computed meanwhile. */
export function recomputedShare(
  { tokens: T, patches: N }: PackSize,
  config: Config,
  shape: Qwen2VLConfig,
  recompute: RecomputePlan,
): number {
  const work = ({ flops, moved }: { flops: number; moved: number }) => flops + moved * bytesOf(config) * FLOPS_PER_BYTE;
  const fused = hasKernels(config);
  const layers = T * shape.text.numLayers;
  const blocks = isVisionFrozen(config) ? 0 : N * shape.vision.depth;
  const again =
    layers * work(textLayerCost(shape, recompute.text)) +
    blocks * work(visionBlockCost(shape, recompute.vision, fused));
  const forward = layers * textLayerCost(shape, "layer").flops + blocks * visionBlockCost(shape, "layer", fused).flops;
  return forward === 0 ? 0 : again / forward;
}

/** Values per row that the adapters of one layer of each part keep, and the widest input of one of them. */
interface AdapterCost {
  kept: number;
  widest: number; // 0 where nothing is dropped
}

function adapterCosts(config: Config, shape: Qwen2VLConfig): { language: AdapterCost; vision: AdapterCost } {
  const lora = loraOf(config);
  const cost = (kind: "layer" | "block"): AdapterCost => {
    if (lora === null) return { kept: 0, widest: 0 };
    const sites = loraSites(shape, lora.targets).filter(({ part }) => part.kind === kind && part.index === 0);
    const widest = lora.dropout > 0 ? Math.max(0, ...sites.map(({ columns }) => columns)) : 0;
    return { kept: loraKept(sites, lora), widest };
  };
  return { language: cost("layer"), vision: cost("block") };
}

/** Beside what they keep, making a mask takes about four int32 values for each of an input's, which are dropped again at once. */
function withAdapters(cost: LayerCost, level: Recompute, { kept, widest }: AdapterCost): LayerCost {
  const isKept = level !== "layer";
  return { ...cost, kept: cost.kept + (isKept ? kept : 0), made: cost.made + (isKept ? 0 : kept) + 8 * widest };
}

/** Whether the element-wise parts of a layer are kernels of the project's own. */
function hasKernels({ device, dtype }: Config): boolean {
  return device !== "cpu" && dtype === "bfloat16";
}

function bytesOf({ dtype }: Config): number {
  return dtype === "bfloat16" ? 2 : 4;
}
