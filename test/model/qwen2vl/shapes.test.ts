/** The released 2B, 7B and 72B: their config.json in both layouts, and every parameter's name and shape as transformers has it. */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { configJson, type Json, parseConfig } from "../../../src/model/qwen2vl/config.ts";
import { parameterSpecs } from "../../../src/model/qwen2vl/parameters.ts";
import { originalName } from "../../../src/model/weights.ts";

const read = (name: string): Json =>
  JSON.parse(readFileSync(new URL(`../../fixtures/qwen2vl-shapes/${name}.json`, import.meta.url), "utf8")) as Json;

type Tensors = Record<string, { shape: number[]; count: number }>;
/** From transformers on the meta device: names as its state dict has them, layer numbers as `*`. */
const names = read("names") as Record<string, { parameters: number; tensors: Tensors }>;

/** The same model's config.json as transformers 5 writes it. */
function nested(flat: Json): Json {
  const { vision_config, rope_scaling, rope_theta, architectures, model_type, tie_word_embeddings, ...rest } = flat;
  const { image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, ...text } = rest;
  return {
    architectures,
    model_type,
    tie_word_embeddings,
    image_token_id,
    video_token_id,
    vision_start_token_id,
    vision_end_token_id,
    vision_config: { ...(vision_config as Json), model_type: "qwen2_vl_vision" },
    text_config: {
      ...text,
      model_type: "qwen2_vl_text",
      rope_parameters: { rope_theta, rope_type: "default", mrope_section: (rope_scaling as Json).mrope_section },
    },
  };
}

const TABLE = [
  {
    size: "2b",
    hidden: 1536,
    layers: 28,
    heads: 12,
    kv: 2,
    inner: 8960,
    vocab: 151_936,
    tied: true,
    count: 2_208_985_600,
  },
  {
    size: "7b",
    hidden: 3584,
    layers: 28,
    heads: 28,
    kv: 4,
    inner: 18_944,
    vocab: 152_064,
    tied: false,
    count: 8_291_375_616,
  },
  {
    size: "72b",
    hidden: 8192,
    layers: 80,
    heads: 64,
    kv: 8,
    inner: 29_568,
    vocab: 152_064,
    tied: false,
    count: 73_405_560_320,
  },
];

test.each(TABLE)("$size: both layouts of config.json say the same", (row) => {
  const flat = read(row.size);
  const config = parseConfig(flat);
  const { text, vision } = config;
  expect([
    text.hiddenSize,
    text.numLayers,
    text.numHeads,
    text.numKvHeads,
    text.intermediateSize,
    text.vocabSize,
  ]).toEqual([row.hidden, row.layers, row.heads, row.kv, row.inner, row.vocab]);
  expect([vision.depth, vision.embedDim, vision.numHeads, vision.mlpRatio, vision.patchSize]).toEqual([
    32, 1280, 16, 4, 14,
  ]);
  expect(config.tieWordEmbeddings).toBe(row.tied);
  expect(parseConfig(nested(flat))).toEqual(config);
  expect(parseConfig(configJson(config, "bfloat16"))).toEqual(config);
  // in older nested files the tie stands beside the language model's keys
  const { tie_word_embeddings, ...older } = nested(flat);
  expect(parseConfig({ ...older, text_config: { ...(older.text_config as Json), tie_word_embeddings } })).toEqual(
    config,
  );
});

test.each(TABLE)("$size: names, shapes and number of parameters", ({ size, count }) => {
  const specs = parameterSpecs(parseConfig(read(size)));
  const elements = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  expect(specs.reduce((sum, { shape }) => sum + elements(shape), 0)).toBe(count);
  expect(names[size]?.parameters).toBe(count);
  const ours: Tensors = {};
  for (const { name, shape } of specs.flatMap(({ parts }) => parts)) {
    const key = name.replace(/(layers|blocks)\.\d+\./, "$1.*.");
    ours[key] ??= { shape, count: 0 };
    ours[key].count++;
    expect(ours[key].shape).toEqual(shape);
  }
  const theirs = Object.entries(names[size]?.tensors ?? {}).map(([name, entry]) => [originalName(name), entry]);
  expect(ours).toEqual(Object.fromEntries(theirs));
  expect(theirs.length).toBeGreaterThan(30);
});
