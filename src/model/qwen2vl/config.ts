/**
 * Shape of a Qwen2-VL, read from a Hugging Face folder. config.json comes in two layouts: the flat one that Qwen released
 * (language model keys at the top, `rope_scaling`), and the nested one of transformers >= 4.52 (`text_config`, `rope_parameters`).
 * Both are read, the flat one is written: every transformers version loads it.
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CheckpointError } from "../../errors.ts";
import { parseObject } from "../json.ts";

export interface Qwen2VLConfig {
  text: {
    vocabSize: number;
    hiddenSize: number;
    intermediateSize: number;
    numLayers: number;
    numHeads: number;
    numKvHeads: number;
    rmsNormEps: number;
    ropeTheta: number;
    /** How many of the headDim / 2 rotary frequencies turn with the temporal, height and width position. */
    mropeSection: [t: number, h: number, w: number];
    maxPositionEmbeddings: number;
  };
  vision: {
    depth: number;
    embedDim: number;
    numHeads: number;
    mlpRatio: number;
    inChannels: number;
    patchSize: number;
    spatialMergeSize: number;
    temporalPatchSize: number;
  };
  imageTokenId: number;
  videoTokenId: number;
  visionStartTokenId: number;
  visionEndTokenId: number;
  bosTokenId: number | null;
  /** Ids that end a completion, generation_config.json's where it has them. */
  eosTokenIds: number[];
  padTokenId: number | null;
  tieWordEmbeddings: boolean;
  /** Standard deviation of random weights. */
  initializerRange: number;
  /** generation_config.json as it was read, written back unchanged. */
  generation: Record<string, unknown> | null;
}

export function headDim(config: Qwen2VLConfig): number {
  return config.text.hiddenSize / config.text.numHeads;
}

/** Values of one flattened patch: channels * temporalPatchSize * patchSize^2. */
export function patchWidth({ vision }: Qwen2VLConfig): number {
  return vision.inChannels * vision.temporalPatchSize * vision.patchSize ** 2;
}

/**
 * Reads config.json and, where there is one, generation_config.json.
 * @throws CheckpointError for a file that is missing or not a Qwen2-VL, a key that is missing, or a feature Grove does not implement.
 */
export function readConfig(folder: string): Qwen2VLConfig {
  const path = join(folder, "config.json");
  if (!existsSync(path)) throw new CheckpointError(folder, "holds no config.json");
  const generationPath = join(folder, "generation_config.json");
  return parseConfig(readJson(path), existsSync(generationPath) ? readJson(generationPath) : null, path);
}

/** The same from parsed JSON; `path` names the file in errors. */
export function parseConfig(root: Json, generation: Json | null = null, path = "config.json"): Qwen2VLConfig {
  const fail = (problem: string): never => {
    throw new CheckpointError(path, problem);
  };
  if (root.model_type !== "qwen2_vl") fail(`expected model_type "qwen2_vl", got ${JSON.stringify(root.model_type)}`);
  const quantization = root.quantization_config as { quant_method?: string } | null | undefined;
  if (quantization)
    fail(`quantized weights (${quantization.quant_method}) are not supported: use the model that they were made of`);
  const text = { ...root, ...((root.text_config as Json | undefined) ?? {}) };
  const vision = (root.vision_config as Json | undefined) ?? fail("has no vision_config");
  const number = (from: Json, ...keys: (string | number)[]): number => {
    for (const key of keys) {
      if (typeof key === "number") return key; // a default
      if (typeof from[key] === "number") return from[key];
    }
    return fail(`expected a number for ${keys[0]}, got ${JSON.stringify(from[keys[0] as string])}`);
  };
  const rope = { ...((text.rope_scaling as Json | null) ?? {}), ...((text.rope_parameters as Json | null) ?? {}) };
  const ropeType = (rope.rope_type ?? rope.type ?? "default") as string;
  if (ropeType !== "mrope" && ropeType !== "default") fail(`rope type "${ropeType}" is not supported, only mrope`);
  if (text.use_sliding_window === true) fail("use_sliding_window is not supported");
  for (const [where, key, wanted] of [
    [text, "hidden_act", "silu"],
    [vision, "hidden_act", "quick_gelu"],
  ] as const) {
    if (where[key] !== undefined && where[key] !== wanted)
      fail(`${key} "${where[key]}" is not supported, only ${wanted}`);
  }
  const section = rope.mrope_section as number[] | undefined;
  if (!Array.isArray(section) || section.length !== 3)
    fail(`expected mrope_section of three numbers, got ${JSON.stringify(section)}`);
  const eos = generation?.eos_token_id ?? root.eos_token_id ?? text.eos_token_id ?? [];
  const eosTokenIds = (Array.isArray(eos) ? eos : [eos]) as number[];
  if (!eosTokenIds.every(Number.isInteger)) fail(`expected ids for eos_token_id, got ${JSON.stringify(eos)}`);
  const optionalId = (key: string): number | null =>
    (generation?.[key] ?? root[key] ?? text[key] ?? null) as number | null;
  const config: Qwen2VLConfig = {
    text: {
      vocabSize: number(text, "vocab_size"),
      hiddenSize: number(text, "hidden_size"),
      intermediateSize: number(text, "intermediate_size"),
      numLayers: number(text, "num_hidden_layers"),
      numHeads: number(text, "num_attention_heads"),
      numKvHeads: number(text, "num_key_value_heads", "num_attention_heads"),
      rmsNormEps: number(text, "rms_norm_eps"),
      ropeTheta: number({ ...text, ...rope }, "rope_theta", 1e6),
      mropeSection: section as [number, number, number],
      maxPositionEmbeddings: number(text, "max_position_embeddings", 32768),
    },
    vision: {
      depth: number(vision, "depth"),
      embedDim: number(vision, "embed_dim"),
      numHeads: number(vision, "num_heads"),
      mlpRatio: number(vision, "mlp_ratio", 4),
      inChannels: number(vision, "in_channels", "in_chans", 3),
      patchSize: number(vision, "patch_size", 14),
      spatialMergeSize: number(vision, "spatial_merge_size", 2),
      temporalPatchSize: number(vision, "temporal_patch_size", 2),
    },
    imageTokenId: number(root, "image_token_id", 151655),
    videoTokenId: number(root, "video_token_id", 151656),
    visionStartTokenId: number(root, "vision_start_token_id", 151652),
    visionEndTokenId: number(root, "vision_end_token_id", 151653),
    bosTokenId: optionalId("bos_token_id"),
    eosTokenIds,
    padTokenId: optionalId("pad_token_id"),
    // 5.x keeps it at the top, older nested files inside text_config
    tieWordEmbeddings:
      root.tie_word_embeddings === true || (root.text_config as Json | undefined)?.tie_word_embeddings === true,
    initializerRange: number(text, "initializer_range", 0.02),
    generation,
  };
  checkShapes(config, fail);
  const merged = number(vision, "hidden_size", config.text.hiddenSize);
  if (merged !== config.text.hiddenSize) {
    fail(`vision_config.hidden_size ${merged} must equal the language model's hidden_size ${config.text.hiddenSize}`);
  }
  return config;
}

/** config.json in the flat layout. `dtype` is that of the stored weights. */
export function configJson(config: Qwen2VLConfig, dtype: string): Json {
  const { text, vision } = config;
  return {
    architectures: ["Qwen2VLForConditionalGeneration"],
    model_type: "qwen2_vl",
    attention_dropout: 0.0,
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenIds[0] ?? null, // one id here; all of them are in generation_config.json
    pad_token_id: config.padTokenId,
    vision_start_token_id: config.visionStartTokenId,
    vision_end_token_id: config.visionEndTokenId,
    image_token_id: config.imageTokenId,
    video_token_id: config.videoTokenId,
    hidden_act: "silu",
    hidden_size: text.hiddenSize,
    initializer_range: config.initializerRange,
    intermediate_size: text.intermediateSize,
    max_position_embeddings: text.maxPositionEmbeddings,
    max_window_layers: text.numLayers,
    num_attention_heads: text.numHeads,
    num_hidden_layers: text.numLayers,
    num_key_value_heads: text.numKvHeads,
    rms_norm_eps: text.rmsNormEps,
    rope_theta: text.ropeTheta,
    rope_scaling: { type: "mrope", mrope_section: text.mropeSection },
    sliding_window: text.maxPositionEmbeddings,
    use_sliding_window: false,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: dtype,
    use_cache: true,
    vocab_size: text.vocabSize,
    vision_config: {
      model_type: "qwen2_vl",
      depth: vision.depth,
      embed_dim: vision.embedDim,
      hidden_act: "quick_gelu",
      hidden_size: text.hiddenSize,
      in_channels: vision.inChannels,
      in_chans: vision.inChannels,
      mlp_ratio: vision.mlpRatio,
      num_heads: vision.numHeads,
      patch_size: vision.patchSize,
      spatial_merge_size: vision.spatialMergeSize,
      spatial_patch_size: vision.patchSize,
      temporal_patch_size: vision.temporalPatchSize,
    },
  };
}

/** generation_config.json: what was read, or the token ids alone. */
export function generationJson(config: Qwen2VLConfig): Json {
  return (
    config.generation ?? {
      bos_token_id: config.bosTokenId,
      eos_token_id: config.eosTokenIds,
      pad_token_id: config.padTokenId ?? config.bosTokenId,
    }
  );
}

export type Json = Record<string, unknown>;

function checkShapes(config: Qwen2VLConfig, fail: (problem: string) => never): void {
  const { text, vision } = config;
  const sizes = {
    ...{ vocab_size: text.vocabSize, hidden_size: text.hiddenSize, intermediate_size: text.intermediateSize },
    ...{ num_hidden_layers: text.numLayers, num_attention_heads: text.numHeads, num_key_value_heads: text.numKvHeads },
    ...{ depth: vision.depth, embed_dim: vision.embedDim, num_heads: vision.numHeads, mlp_ratio: vision.mlpRatio },
    ...{ in_channels: vision.inChannels, patch_size: vision.patchSize, temporal_patch_size: vision.temporalPatchSize },
    spatial_merge_size: vision.spatialMergeSize,
  };
  for (const [key, size] of Object.entries(sizes)) {
    if (!Number.isInteger(size) || size < 1) fail(`expected a whole number above 0 for ${key}, got ${size}`);
  }
  if (!text.mropeSection.every((count) => Number.isInteger(count) && count >= 0))
    fail(`expected mrope_section of three numbers, got ${JSON.stringify(text.mropeSection)}`);
  const dim = headDim(config);
  const sum = text.mropeSection.reduce((a, b) => a + b, 0);
  if (text.hiddenSize % text.numHeads !== 0)
    fail(`hidden_size ${text.hiddenSize} is not a multiple of ${text.numHeads} heads`);
  if (text.numHeads % text.numKvHeads !== 0)
    fail(`${text.numHeads} heads are not a multiple of ${text.numKvHeads} key-value heads`);
  if (sum * 2 !== dim) fail(`mrope_section [${text.mropeSection}] must add up to half the head size ${dim}`);
  if (vision.embedDim % (vision.numHeads * 4) !== 0) {
    fail(
      `vision embed_dim ${vision.embedDim} over ${vision.numHeads} heads must give a head size that is a multiple of 4`,
    );
  }
}

function readJson(path: string): Json {
  return parseObject(path, readFileSync(path, "utf8"));
}
