/**
 * Writes a Hugging Face folder of a small Qwen2-VL without weights: config, generation config, processor config, tokenizer and chat
 * template. The model code then draws the weights (`model.init: random`).
 */

import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { ConfigError } from "../errors.ts";
import { QWEN2_VL_CHAT_TEMPLATE } from "./tokenizer.ts";
import { type SpecialToken, specialId, trainTokenizer, writeTokenizer } from "./tokenizer-training.ts";

/** Shape of a small policy; the names of the config's `tinyModel`, and what is rarely changed. */
export interface TinyModelSpec {
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  visionWidth: number;
  visionLayers: number;
  visionHeads: number;
  visionMlpRatio?: number; // 4 [Qwen2-VL]
  patchSize?: number; // 14 [Qwen2-VL]
  tieWordEmbeddings?: boolean; // true [Qwen2-VL-2B]
  ropeTheta?: number; // 1e6 [Qwen2-VL]
  initializerRange?: number; // 0.02 [Qwen2-VL]
}

/**
 * @param corpus text whose words the tokenizer knows whole
 * @returns the vocabulary's size
 * @throws ConfigError when heads do not divide widths, or rotary embeddings do not fit a head
 */
export async function writeModelFolder(
  folder: string,
  { spec, corpus }: { spec: TinyModelSpec; corpus: Iterable<string> },
): Promise<{ vocabSize: number }> {
  checkSpec(spec);
  const tokenizer = trainTokenizer(corpus);
  const id = (token: SpecialToken) => specialId(tokenizer, token);
  const eos = [id("<|im_end|>"), id("<|endoftext|>")];
  const files = {
    "config.json": modelConfig(spec, tokenizer.vocabSize, id),
    "generation_config.json": {
      bos_token_id: id("<|endoftext|>"),
      pad_token_id: id("<|endoftext|>"),
      eos_token_id: eos,
      do_sample: true,
      temperature: 1,
      top_k: 0,
      top_p: 1,
    },
    "preprocessor_config.json": {
      min_pixels: 3136,
      max_pixels: 12845056,
      patch_size: spec.patchSize ?? 14,
      temporal_patch_size: 2,
      merge_size: 2,
      image_mean: [0.48145466, 0.4578275, 0.40821073],
      image_std: [0.26862954, 0.26130258, 0.27577711],
      image_processor_type: "Qwen2VLImageProcessor",
      processor_class: "Qwen2VLProcessor",
    },
    "chat_template.json": { chat_template: QWEN2_VL_CHAT_TEMPLATE },
  };
  await mkdir(folder, { recursive: true });
  await writeTokenizer(folder, tokenizer);
  for (const [name, content] of Object.entries(files)) {
    await writeFile(path.join(folder, name), `${JSON.stringify(content, null, 2)}\n`);
  }
  return { vocabSize: tokenizer.vocabSize };
}

function modelConfig(spec: TinyModelSpec, vocabSize: number, id: (token: SpecialToken) => number): object {
  return {
    architectures: ["Qwen2VLForConditionalGeneration"],
    attention_dropout: 0,
    bos_token_id: id("<|endoftext|>"),
    eos_token_id: id("<|im_end|>"),
    pad_token_id: id("<|endoftext|>"),
    vision_start_token_id: id("<|vision_start|>"),
    vision_end_token_id: id("<|vision_end|>"),
    vision_token_id: id("<|vision_pad|>"),
    image_token_id: id("<|image_pad|>"),
    video_token_id: id("<|video_pad|>"),
    hidden_act: "silu",
    hidden_size: spec.hiddenSize,
    initializer_range: spec.initializerRange ?? 0.02,
    intermediate_size: spec.intermediateSize,
    max_position_embeddings: 32768,
    max_window_layers: spec.layers,
    model_type: "qwen2_vl",
    num_attention_heads: spec.heads,
    num_hidden_layers: spec.layers,
    num_key_value_heads: spec.kvHeads,
    rms_norm_eps: 1e-6,
    rope_theta: spec.ropeTheta ?? 1e6,
    rope_scaling: { type: "mrope", mrope_section: mropeSection(spec.hiddenSize / spec.heads) },
    sliding_window: 32768,
    tie_word_embeddings: spec.tieWordEmbeddings ?? true,
    torch_dtype: "bfloat16",
    use_cache: true,
    use_sliding_window: false,
    vision_config: {
      depth: spec.visionLayers,
      embed_dim: spec.visionWidth,
      mlp_ratio: spec.visionMlpRatio ?? 4,
      num_heads: spec.visionHeads,
      in_chans: 3,
      hidden_size: spec.hiddenSize,
      patch_size: spec.patchSize ?? 14,
      spatial_merge_size: 2,
      spatial_patch_size: spec.patchSize ?? 14,
      temporal_patch_size: 2,
      hidden_act: "quick_gelu",
      model_type: "qwen2_vl",
    },
    vocab_size: vocabSize,
  };
}

/** Rotary frequencies for time, height and width in Qwen2-VL's proportion, 16 : 24 : 24 of a 128-wide head. */
export function mropeSection(headDim: number): [number, number, number] {
  const plane = Math.floor((headDim / 2) * 0.375);
  return [headDim / 2 - 2 * plane, plane, plane];
}

function checkSpec(spec: TinyModelSpec): void {
  const problems: [boolean, string][] = [
    [spec.hiddenSize % spec.heads !== 0, `hiddenSize ${spec.hiddenSize} is not a multiple of heads ${spec.heads}`],
    [(spec.hiddenSize / spec.heads) % 2 !== 0, "hiddenSize / heads must be even for rotary embeddings"],
    [spec.heads % spec.kvHeads !== 0, `heads ${spec.heads} is not a multiple of kvHeads ${spec.kvHeads}`],
    [
      spec.visionWidth % (4 * spec.visionHeads) !== 0,
      "visionWidth / visionHeads must be a multiple of 4 for 2-D rotary embeddings",
    ],
  ];
  for (const [wrong, problem] of problems) {
    if (wrong) throw new ConfigError(`tinyModel: ${problem}`, { spec });
  }
}
