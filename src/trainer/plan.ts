/**
 * What a run will need, as plain arithmetic over a config and the shape of a model: no tensor, no libtorch, no file. `--dry-run` prints it.
 *
 * Exact: weights, reference, gradients and optimizer, which are allocated as they are computed here. Estimated: the key/value cache, for prompts
 * of one length, activations and workspace, from what the passes of src/model keep and make; CUDA's own memory and fragmentation come on top, and
 * in an update a key/value cache that is small enough to be kept (rollout/slot-engine.ts).
 */

import type { Config } from "../config/schema.ts";
import type { RecomputePlan } from "../model/pass.ts";
import { headDim, type Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { kvDType, waveBytes } from "../rollout/kv-shape.ts";
import { PREFILL_TOKENS } from "../rollout/prefill-packs.ts";
import { planSlots, slotBytes } from "../rollout/slot-shape.ts";
import type { Device, DType } from "../torch/tensor.ts";
import { activationBytes, KEPT_FEATURES_BYTES, type PackSize, updateWorkspace } from "./activations.ts";
import { bytesPerParameter, flatLayout, stagingBytes } from "./flat-layout.ts";

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

/** Number of weights; a tied head is the embedding and counts once. Qwen2-VL-7B: 8,291,375,616. */
export function parameterCount(shape: Qwen2VLConfig): number {
  return parameterSpecs(shape).reduce((sum, spec) => sum + product(spec.shape), 0);
}

/** Every part of the memory that a run takes on its device, with `recompute` in its passes. */
export function memoryParts(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  recompute: RecomputePlan = { text: "none", vision: "none" },
): MemoryPart[] {
  const bytes = bytesOf(config.dtype);
  const weights = parameterCount(shape) * bytes;
  const parts: MemoryPart[] = [{ name: "weights", bytes: weights, during: "always" }];
  if (stage === "grpo" && config.trainer.klCoef > 0)
    parts.push({ name: "reference", bytes: weights, during: "always" });
  if (stage !== "eval") {
    const { gradients, optimizer } = optimizerBytes(config, shape);
    parts.push({ name: "gradients", bytes: gradients, during: "always" });
    parts.push({ name: "optimizer", bytes: optimizer, during: "always" });
    const features = featureBytes(stage, config, shape, size);
    if (features > 0) parts.push({ name: "features kept", bytes: features, during: "always" });
    const pack = largestPack(stage, config, shape, size);
    parts.push({ name: "activations", bytes: activationBytes(pack, config, shape, recompute), during: "update" });
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

/** What AdamW allocates (optimizer.ts): gradients and, on the device and on the host, moments and the low halves of a bfloat16 weight's master. */
export function optimizerBytes(
  config: Config,
  shape: Qwen2VLConfig,
): { gradients: number; optimizer: number; host: number } {
  const trained = parameterSpecs(shape).filter(
    ({ name }) => !(config.model.freezeVision && name.startsWith("visual.")),
  );
  const { size } = flatLayout(trained.map((spec) => product(spec.shape)));
  const { gradients, device, host } = bytesPerParameter(config);
  return { gradients: size * gradients, optimizer: size * device + stagingBytes(config, size), host: size * host };
}

/** Features of pictures that are kept (vision-features.ts), at most: of a step's questions, or of all where they may be asked again. */
function featureBytes(stage: Stage, config: Config, shape: Qwen2VLConfig, size: QuestionSize): number {
  const { questionsPerStep, epochs, steps, klCoef } = config.trainer;
  const recurs = epochs > 1 || steps !== undefined;
  const { freezeVision } = config.model;
  const keeps = stage === "grpo" ? freezeVision || (recurs && klCoef > 0) : freezeVision && recurs;
  if (!keeps || size.vision === 0) return 0;
  const question = size.vision * shape.text.hiddenSize * bytesOf(config.dtype);
  return Math.min(
    KEPT_FEATURES_BYTES,
    questionsPerStep * (recurs ? (steps ?? Number.POSITIVE_INFINITY) : 1) * question,
  );
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
