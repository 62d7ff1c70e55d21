/**
 * What a run will need, as plain arithmetic over a config and the shape of a model: no tensor, no libtorch, no file. `--dry-run` prints it.
 *
 * Exact: weights, reference, gradients and optimizer, which are allocated as they are computed here. Estimated: the key/value cache, for prompts
 * of one length, activations and workspace, from what the passes of src/model keep and make; CUDA's own memory and fragmentation come on top, and
 * in an update a key/value cache that is small enough to be kept (rollout/slot-engine.ts).
 */

import type { Config } from "../config/schema.ts";
import { headDim, patchWidth, type Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { kvDType, waveBytes } from "../rollout/kv-shape.ts";
import { PREFILL_TOKENS } from "../rollout/prefill-packs.ts";
import { planSlots, slotBytes } from "../rollout/slot-shape.ts";
import type { Device, DType } from "../torch/tensor.ts";
import { flatLayout } from "./flat-layout.ts";

export type Stage = "grpo" | "sft" | "eval";

/** Lengths of a typical question, in tokens. */
export interface QuestionSize {
  prompt: number; // media included
  vision: number; // of the prompt
  completion: number; // the longest that may be sampled, or the response
}

export interface MemoryPart {
  name: string;
  bytes: number;
  /** Parts of "rollout" and of "update" are not there at the same time. */
  during: "always" | "rollout" | "update";
}

/** A pack of the largest size that a batch of questions of this size makes. */
export interface PackSize {
  tokens: number; // T
  completionTokens: number; // Tc
  patches: number; // N, before the merge
}

// As in src/model/lm-head.ts: logits of one chunk, and up to how many log-softmax values are kept for the backward.
export const CHUNK_ELEMENTS = 2 ** 28;
export const KEEP_ELEMENTS = 2 ** 26;

/** Number of weights; a tied head is the embedding and counts once. Qwen2-VL-7B: 8,291,375,616. */
export function parameterCount(shape: Qwen2VLConfig): number {
  return parameterSpecs(shape).reduce((sum, spec) => sum + product(spec.shape), 0);
}

/** Every part of the memory that a run takes on its device. */
export function memoryParts(stage: Stage, config: Config, shape: Qwen2VLConfig, size: QuestionSize): MemoryPart[] {
  const bytes = bytesOf(config.dtype);
  const weights = parameterCount(shape) * bytes;
  const parts: MemoryPart[] = [{ name: "weights", bytes: weights, during: "always" }];
  if (stage === "grpo" && config.trainer.klCoef > 0)
    parts.push({ name: "reference", bytes: weights, during: "always" });
  if (stage !== "eval") {
    const { gradients, optimizer } = optimizerBytes(config, shape);
    parts.push({ name: "gradients", bytes: gradients, during: "always" });
    parts.push({ name: "optimizer", bytes: optimizer, during: "always" });
    const pack = largestPack(stage, config, shape, size);
    parts.push({ name: "activations", bytes: activationBytes(pack, config, shape), during: "update" });
    parts.push({ name: "update workspace", bytes: updateWorkspace(pack, config, shape), during: "update" });
  }
  if (stage !== "sft") {
    parts.push({ name: "KV cache and drawing", bytes: rolloutBytes(stage, config, shape, size), during: "rollout" });
    parts.push({ name: "prefill workspace", bytes: PREFILL_TOKENS * layerPeak(shape) * bytes, during: "rollout" });
  }
  return parts;
}

/** The most that is taken at any time. */
export function peakBytes(parts: readonly MemoryPart[]): number {
  const during = (when: MemoryPart["during"]) =>
    parts.reduce((sum, part) => sum + (part.during === when ? part.bytes : 0), 0);
  return during("always") + Math.max(during("rollout"), during("update"));
}

/** What AdamW allocates (optimizer.ts): gradients in the weights' type, two float32 moments, 16 low bits of a bfloat16 weight's master. */
export function optimizerBytes(config: Config, shape: Qwen2VLConfig): { gradients: number; optimizer: number } {
  const trained = parameterSpecs(shape).filter(
    ({ name }) => !(config.model.freezeVision && name.startsWith("visual.")),
  );
  const { size } = flatLayout(trained.map((spec) => product(spec.shape)));
  return {
    gradients: size * bytesOf(config.dtype),
    optimizer: size * (config.dtype === "bfloat16" ? 4 + 4 + 2 : 4 + 4),
  };
}

/** As many units (a group, or with trainer.sharedPrefix: false a completion with its prompt) as fit trainer.tokensPerPack, at least one. */
export function largestPack(stage: Stage, config: Config, shape: Qwen2VLConfig, size: QuestionSize): PackSize {
  const { questionsPerStep, tokensPerPack, sharedPrefix } = config.trainer;
  const group = stage === "grpo" ? config.rollout.groupSize : 1;
  const perUnit = sharedPrefix ? group : 1;
  const unit = size.prompt + perUnit * size.completion;
  const units = Math.min(Math.max(1, Math.floor(tokensPerPack / unit)), (questionsPerStep * group) / perUnit);
  return {
    tokens: units * unit,
    completionTokens: units * perUnit * size.completion,
    patches: units * size.vision * shape.vision.spatialMergeSize ** 2,
  };
}

/**
 * What a pass keeps for its backward. Values per token of one text layer (src/model/qwen2vl/text.ts), X hidden, H and K heads of D, I intermediate:
 *   4 X (its input, the first norm's output, the sum behind attention, the second norm's output) + (H + 2 K) D (q, k, v in one) +
 *   (H + K) D (rotated q, k) + H D (attended) + 2 I (gate and up; swiglu_down keeps nothing else)
 * and per patch of one vision block (vision.ts), E wide, MLP r E: 4 E as above + 3 E (q, k, v) + 2 E (rotated) + E (attended) + 3 r E (up, its
 * sigmoid, their product). model.recompute "none" keeps this for every layer; "layer" keeps each layer's input, X or E, and the whole of one layer,
 * the one that is just walked back. Beside the layers: hidden states of the completion tokens before and behind the final norm and their
 * gradient, log-softmax where it is small enough to be kept, pixels of the patches.
 * Checked against resident memory after a forward on the CPU in float32, 16 layers 512 wide: text 997 MiB computed, 1,007 measured; vision 320 wide
 * 1,881 and 1,913; with recompute the peak, workspace included, 230 and 209, 367 and 352. Not checked on a GPU.
 */
export function activationBytes(pack: PackSize, config: Config, shape: Qwen2VLConfig): number {
  const bytes = bytesOf(config.dtype);
  const { text, vision } = shape;
  const { tokens: T, completionTokens: Tc, patches: N } = pack;
  const D = headDim(shape);
  const qkv = (text.numHeads + 2 * text.numKvHeads) * D;
  const rotated = (text.numHeads + text.numKvHeads) * D;
  const textGraph = T * (4 * text.hiddenSize + qkv + rotated + text.numHeads * D + 2 * text.intermediateSize);
  const visionGraph = N * vision.embedDim * (10 + 3 * vision.mlpRatio);
  const trained = !config.model.freezeVision;
  const keepsAll = config.model.recompute === "none";
  const textKept = text.numLayers * (keepsAll ? textGraph : T * text.hiddenSize);
  const visionKept = trained ? vision.depth * (keepsAll ? visionGraph : N * vision.embedDim) : 0;
  const walked = keepsAll ? 0 : Math.max(textGraph, trained ? visionGraph : 0);
  const head = 3 * Tc * text.hiddenSize;
  const kept = Tc * text.vocabSize <= KEEP_ELEMENTS ? Tc * text.vocabSize * 4 : 0;
  const media = N * patchWidth(shape) + (N / vision.spatialMergeSize ** 2) * text.hiddenSize;
  return (textKept + visionKept + walked + head + media) * bytes + kept;
}

/**
 * The largest thing an update makes beside that and drops again: one chunk of the head (logits, float32 logits, log-softmax, its exponential and
 * the logits' gradient), the gradient of one layer's MLP with that of its largest matrix, or the embedding's whole gradient before it is added.
 */
export function updateWorkspace(
  { tokens: T, completionTokens: Tc }: PackSize,
  config: Config,
  shape: Qwen2VLConfig,
): number {
  const bytes = bytesOf(config.dtype);
  const { vocabSize: V, hiddenSize: X, intermediateSize: I } = shape.text;
  const rows = Math.min(Tc, Math.max(1, Math.floor(CHUNK_ELEMENTS / V)));
  const perLogit = config.dtype === "bfloat16" ? 2 + 4 + 4 + 4 + 2 : 3 * 4; // float32 logits need no conversion
  const head = rows * V * perLogit;
  const layer = (T * (5 * I + 3 * X) + 2 * I * X) * bytes;
  return Math.max(head, layer, V * X * bytes);
}

/** Keys, values and what drawing takes, as the sampler allocates them: by slots on the CPU and where the kernels are for, by waves elsewhere. */
function rolloutBytes(stage: Stage, config: Config, shape: Qwen2VLConfig, size: QuestionSize): number {
  const device = config.device as Device;
  const { maxConcurrent, groupSize, deterministic } = config.rollout;
  const group = stage === "grpo" ? groupSize : 1;
  const questions = stage === "grpo" ? config.trainer.questionsPerStep : config.eval.batchSize;
  const { numLayers: layers, numKvHeads: kvHeads, vocabSize } = shape.text;
  const sizes = { layers, kvHeads, headDim: headDim(shape), vocabSize, device, dtype: config.dtype };
  if (device === "cpu" || config.dtype === "bfloat16" || deterministic) {
    // The prompts that fill the rows of a step; what more of them take is what is left.
    const prompts = Math.min(questions, Math.ceil(maxConcurrent / group));
    const promptLengths = Array<number>(prompts).fill(size.prompt);
    const request = { promptLengths, groupSize: group, maxNewTokens: size.completion, maxConcurrent };
    return slotBytes(planSlots({ ...request, fixedRows: deterministic }, sizes, Number.POSITIVE_INFINITY), sizes);
  }
  const align = (slots: number) => Math.ceil(slots / 8) * 8;
  const round = Math.min(group, maxConcurrent);
  const wave = {
    ...sizes,
    questions: Math.min(questions, Math.max(1, Math.floor(maxConcurrent / round))),
    group: round,
    promptSlots: align(size.prompt),
    ownSlots: align(size.completion),
  };
  return waveBytes(wave, kvDType(device, config.dtype), vocabSize);
}

/** Values per token that one layer holds at its fullest without a graph: gate and up and their product beside the residual and its norm. */
function layerPeak({ text }: Qwen2VLConfig): number {
  return 3 * text.intermediateSize + 3 * text.hiddenSize;
}

/** Placeholder tokens of a question whose videos have data.maxFrames frames; null where the pictures' own sizes decide. */
export function visionEstimate(
  data: Pick<Config["data"], "maxFrames" | "resizedHeight" | "resizedWidth">,
  media: { videos: number; images: number },
  { patchSize, temporalPatchSize, spatialMergeSize }: Qwen2VLConfig["vision"],
): number | null {
  if (media.videos + media.images === 0) return 0;
  if (data.resizedHeight === undefined || data.resizedWidth === undefined) return null;
  const factor = patchSize * spatialMergeSize;
  const side = (pixels: number) => Math.max(1, Math.round(pixels / factor));
  const picture = side(data.resizedHeight) * side(data.resizedWidth);
  return media.videos * Math.ceil(data.maxFrames / temporalPatchSize) * picture + media.images * picture;
}

function bytesOf(dtype: DType): number {
  return dtype === "bfloat16" ? 2 : 4;
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}
