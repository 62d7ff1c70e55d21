/**
 * What a run will need on each GPU, as plain arithmetic over a config and the shape of a model: no tensor, no libtorch, no file. `--dry-run` prints it.
 *
 * Exact: weights, reference, gradients and optimizer, which are allocated as they are computed here. Estimated: the key/value cache, for prompts
 * of one length, activations and workspace, from what the passes of src/model keep and make. CUDA's own memory and fragmentation come on top
 * (memory-fit.ts). test/trainer/plan-measured.test.ts holds the sum against peaks that were measured.
 */

import { needsReference } from "../config/care.ts";
import type { Config } from "../config/schema.ts";
import { isVisionFrozen } from "../config/trained-parts.ts";
import type { RecomputePlan } from "../model/pass.ts";
import { headDim, type Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { kvDType, waveBytes } from "../rollout/kv-shape.ts";
import { AVAILABLE_SHARE, KEPT_SHARE } from "../rollout/memory-shares.ts";
import { PREFILL_TOKENS } from "../rollout/prefill-packs.ts";
import { planSlots, slotBytes } from "../rollout/slot-shape.ts";
import type { Device, DType } from "../torch/tensor.ts";
import { activationBytes, CHUNK_BYTES, KEPT_FEATURES_BYTES, type PackSize, updateWorkspace } from "./activations.ts";
import { stateBytes } from "./sharded-memory.ts";

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
  /** What is there always, and what only in one of a step's phases, which follow each other. */
  during: "always" | "rollout" | "reference" | "update";
}

/** Where and how a config is run. */
export interface PlanSetting {
  /** Of the update's passes; default: nothing is computed again. */
  recompute?: RecomputePlan | undefined;
  /** Processes with a GPU each; default: one. */
  ranks?: number;
  /** Records of the training data; unknown: questions may be asked again as far as the knobs allow it. */
  records?: number | undefined;
  /** Memory of the device in bytes; unknown: the rollout has as much as it wishes for. */
  device?: number | null;
}

/** Number of weights; a tied head is the embedding and counts once. Qwen2-VL-7B: 8,291,375,616. */
export function parameterCount(shape: Qwen2VLConfig): number {
  return parameterSpecs(shape).reduce((sum, spec) => sum + product(spec.shape), 0);
}

/** Every part of the memory that a rank takes on its device. */
export function memoryParts(
  stage: Stage,
  all: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  { recompute = { text: "none", vision: "none" }, ranks = 1, records, device = null }: PlanSetting = {},
): MemoryPart[] {
  const config = configOfRank(all, ranks);
  const bytes = bytesOf(config.dtype);
  const state = stateBytes(config, shape, stage === "eval" ? 1 : ranks);
  const parts: MemoryPart[] = [];
  const add = (during: MemoryPart["during"], name: string, bytes: number) => {
    if (bytes > 0) parts.push({ name, bytes, during });
  };
  add("always", "weights", state.weights);
  if (stage === "grpo" && needsReference(config.trainer)) {
    const pack = largestPack(stage, config, shape, size);
    add("always", "reference", state.reference);
    add("reference", "reference workspace", referenceWorkspace(pack, config, shape));
  }
  if (stage !== "eval") {
    add("always", "gradients", state.gradients);
    add("always", "optimizer", state.optimizer);
    add("always", "features kept", featureBytes(stage, all, shape, size, { ranks, records }));
    const pack = largestPack(stage, config, shape, size);
    add("update", "activations", activationBytes(pack, config, shape, recompute));
    add("update", "update workspace", updateWorkspace(pack, config, shape));
  }
  if (stage !== "sft") {
    const kv = rolloutBytes(stage, config, shape, size, device === null ? null : device - sumOf(parts, "always"));
    // A cache that is small beside the device stays for the next rollout; a device that is not known has the peak at least.
    const kept = stage !== "eval" && isBySlots(config) && kv <= KEPT_SHARE * (device ?? peakBytes(parts));
    add(kept ? "always" : "rollout", "KV cache and drawing", kv);
    add("rollout", "prefill workspace", PREFILL_TOKENS * layerPeak(shape) * bytes);
  }
  return parts;
}

/** The most that is taken at any time. */
export function peakBytes(parts: readonly MemoryPart[]): number {
  return (
    sumOf(parts, "always") +
    Math.max(...(["rollout", "reference", "update"] as const).map((phase) => sumOf(parts, phase)))
  );
}

export function sumOf(parts: readonly MemoryPart[], during: MemoryPart["during"]): number {
  return parts.reduce((sum, part) => sum + (part.during === during ? part.bytes : 0), 0);
}

/** The config as the rank with the most questions runs it. */
export function configOfRank(config: Config, ranks: number): Config {
  const questionsPerStep = Math.ceil(config.trainer.questionsPerStep / ranks);
  return { ...config, trainer: { ...config.trainer, questionsPerStep } };
}

/** Features of pictures that are kept (vision-features.ts), at most: of a step's questions, or of all where they may be asked again. */
function featureBytes(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  { ranks, records }: { ranks: number; records: number | undefined },
): number {
  const { epochs, steps, resampleRounds } = config.trainer;
  const perStep = Math.ceil(config.trainer.questionsPerStep / ranks);
  const again =
    steps === undefined ? epochs > 1 : records === undefined || steps * config.trainer.questionsPerStep > records;
  const recurs = again || resampleRounds > 0; // a question that fills a place may have been asked
  const freezeVision = isVisionFrozen(config);
  const wholeReference = needsReference(config.trainer) && !(ranks > 1 && config.distributed.shardReference); // only such a one keeps what its tower says
  const keeps = stage === "grpo" ? freezeVision || (recurs && wholeReference) : freezeVision && recurs;
  if (!keeps || size.vision === 0) return 0;
  const question = size.vision * shape.text.hiddenSize * bytesOf(config.dtype);
  const unlimited = Number.POSITIVE_INFINITY;
  const kept = recurs ? Math.min((steps ?? unlimited) * perStep, records ?? unlimited) : perStep;
  return Math.min(KEPT_FEATURES_BYTES, kept * question);
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

/** Of a pass that keeps nothing: one layer at its fullest, or one chunk of the head's logits. */
function referenceWorkspace(pack: PackSize, config: Config, shape: Qwen2VLConfig): number {
  const bytes = bytesOf(config.dtype);
  const logits = Math.min(CHUNK_BYTES, pack.completionTokens * shape.text.vocabSize * bytes);
  return Math.max(pack.tokens * layerPeak(shape) * bytes, logits);
}

/**
 * Keys, values and what drawing takes, as the sampler allocates them: by slots on the CPU and where the kernels are for, by waves elsewhere.
 * @param free bytes beside what is always there; null: not known
 */
function rolloutBytes(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  free: number | null,
): number {
  const device = config.device as Device;
  const { maxConcurrent, groupSize, deterministic } = config.rollout;
  const group = stage === "grpo" ? groupSize : 1;
  const questions = stage === "grpo" ? config.trainer.questionsPerStep : config.eval.batchSize;
  const { numLayers: layers, numKvHeads: kvHeads, vocabSize } = shape.text;
  const sizes = { layers, kvHeads, headDim: headDim(shape), vocabSize, device, dtype: config.dtype };
  if (device === "cpu" || isBySlots(config)) {
    // The prompts that fill the rows of a step; what more of them take is what is left.
    const prompts = Math.min(questions, Math.ceil(maxConcurrent / group));
    const promptLengths = Array<number>(prompts).fill(size.prompt);
    const request = { promptLengths, groupSize: group, maxNewTokens: size.completion, maxConcurrent };
    // Fixed rows do not shrink to what is there.
    const room = free === null || deterministic ? Number.POSITIVE_INFINITY : AVAILABLE_SHARE * free;
    return slotBytes(planSlots({ ...request, fixedRows: deterministic }, sizes, room), sizes);
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

/** Whether a GPU samples by slots, whose buffers may stay. */
function isBySlots({ device, dtype, rollout }: Config): boolean {
  return device !== "cpu" && (dtype === "bfloat16" || rollout.deterministic);
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
