/** Shapes of the released Qwen2-VL models, for plans and benchmarks that run without their files. */

import { parseConfig, type Qwen2VLConfig } from "./config.ts";

const NUMBERS = {
  "2B": { hidden: 1536, intermediate: 8960, layers: 28, heads: 12, kvHeads: 2, vocab: 151936, tied: true },
  "7B": { hidden: 3584, intermediate: 18944, layers: 28, heads: 28, kvHeads: 4, vocab: 152064, tied: false },
  "72B": { hidden: 8192, intermediate: 29568, layers: 80, heads: 64, kvHeads: 8, vocab: 152064, tied: false },
} as const;

export type ReleasedSize = keyof typeof NUMBERS;

/** The size that a folder is named after: "models/Qwen2-VL-7B-Instruct" is 7B; undefined for any other name. */
export function releasedSize(folder: string): ReleasedSize | undefined {
  return /qwen2-vl-(2b|7b|72b)(?![0-9a-z])/i.exec(folder)?.[1]?.toUpperCase() as ReleasedSize | undefined;
}

/** What config.json and generation_config.json of a released model say. */
export function releasedConfig(size: ReleasedSize): Qwen2VLConfig {
  const { hidden, intermediate, layers, heads, kvHeads, vocab, tied } = NUMBERS[size];
  return parseConfig(
    {
      model_type: "qwen2_vl",
      vocab_size: vocab,
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      rms_norm_eps: 1e-6,
      rope_theta: 1e6,
      rope_scaling: { type: "mrope", mrope_section: [16, 24, 24] },
      max_position_embeddings: 32768,
      initializer_range: 0.02,
      tie_word_embeddings: tied,
      bos_token_id: 151643,
      image_token_id: 151655,
      video_token_id: 151656,
      vision_start_token_id: 151652,
      vision_end_token_id: 151653,
      vision_config: { depth: 32, embed_dim: 1280, num_heads: 16, mlp_ratio: 4, patch_size: 14, in_channels: 3 },
    },
    { bos_token_id: 151643, eos_token_id: [151645, 151643], pad_token_id: 151643 },
  );
}
