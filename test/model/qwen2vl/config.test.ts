/** config.json in its two layouts, and what is refused. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { configJson, type Json, parseConfig } from "../../../src/model/qwen2vl/config.ts";
import { FIXTURES } from "../support.ts";

const nested = JSON.parse(readFileSync(join(FIXTURES, "config.json"), "utf8")) as Json;
const generation = JSON.parse(readFileSync(join(FIXTURES, "generation_config.json"), "utf8")) as Json;

/** The keys of Qwen/Qwen2-VL-7B-Instruct's config.json, the flat layout. */
const released: Json = {
  architectures: ["Qwen2VLForConditionalGeneration"],
  attention_dropout: 0.0,
  bos_token_id: 151643,
  eos_token_id: 151645,
  vision_start_token_id: 151652,
  vision_end_token_id: 151653,
  vision_token_id: 151654,
  image_token_id: 151655,
  video_token_id: 151656,
  hidden_act: "silu",
  hidden_size: 3584,
  initializer_range: 0.02,
  intermediate_size: 18944,
  max_position_embeddings: 32768,
  max_window_layers: 28,
  model_type: "qwen2_vl",
  num_attention_heads: 28,
  num_hidden_layers: 28,
  num_key_value_heads: 4,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000.0,
  sliding_window: 32768,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  use_cache: true,
  use_sliding_window: false,
  vision_config: {
    depth: 32,
    embed_dim: 1280,
    mlp_ratio: 4,
    num_heads: 16,
    in_chans: 3,
    hidden_size: 3584,
    patch_size: 14,
    spatial_merge_size: 2,
    spatial_patch_size: 14,
    temporal_patch_size: 2,
  },
  rope_scaling: { type: "mrope", mrope_section: [16, 24, 24] },
  vocab_size: 152064,
};

const vision = released.vision_config as Json;

test("the released flat layout", () => {
  const config = parseConfig(released, { eos_token_id: [151645, 151643], pad_token_id: 151643 });
  expect(config.text).toEqual({
    vocabSize: 152064,
    hiddenSize: 3584,
    intermediateSize: 18944,
    numLayers: 28,
    numHeads: 28,
    numKvHeads: 4,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    mropeSection: [16, 24, 24],
    maxPositionEmbeddings: 32768,
  });
  expect(config.eosTokenIds).toEqual([151645, 151643]);
  expect([config.bosTokenId, config.padTokenId]).toEqual([151643, 151643]);
});

test("the nested layout, and both layouts are the same config", () => {
  const config = parseConfig(nested, generation);
  expect(config.text.ropeTheta).toBe(10000);
  expect(config.vision.patchSize).toBe(4);
  expect(parseConfig(configJson(config, "float32"), generation)).toEqual(config);
});

test.each([
  ["another model", { model_type: "qwen2_5_vl" }, "expected model_type"],
  ["a missing key", { num_hidden_layers: undefined }, "expected a number for num_hidden_layers, got undefined"],
  [
    "yarn",
    { rope_scaling: { type: "yarn", factor: 4, mrope_section: [16, 24, 24] } },
    'rope type "yarn" is not supported',
  ],
  ["a window", { use_sliding_window: true }, "use_sliding_window"],
  [
    "sections that do not fit",
    { rope_scaling: { type: "mrope", mrope_section: [16, 24, 20] } },
    "must add up to half the head size 128",
  ],
  ["heads that do not divide", { num_key_value_heads: 3 }, "not a multiple of 3 key-value heads"],
  ["another activation", { hidden_act: "gelu" }, 'hidden_act "gelu" is not supported'],
  ["no vision tower", { vision_config: undefined }, "has no vision_config"],
  [
    "quantized weights",
    { quantization_config: { quant_method: "awq", bits: 4 } },
    "quantized weights (awq) are not supported",
  ],
  ["no layers", { num_hidden_layers: 0 }, "expected a whole number above 0 for num_hidden_layers, got 0"],
  ["half a layer", { num_hidden_layers: 2.5 }, "whole number above 0 for num_hidden_layers, got 2.5"],
  ["no patches to merge", { vision_config: { ...vision, spatial_merge_size: 0 } }, "spatial_merge_size, got 0"],
  ["sections below 0", { rope_scaling: { type: "mrope", mrope_section: [-16, 40, 40] } }, "expected mrope_section"],
  ["end tokens by name", { eos_token_id: "<|im_end|>" }, 'expected ids for eos_token_id, got "<|im_end|>"'],
])("refuses %s", (_what, change, message) => {
  expect(() => parseConfig({ ...released, ...change })).toThrow(message);
});
