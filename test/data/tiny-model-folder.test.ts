import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { renderedCorpus } from "../../src/data/rendered/corpus.ts";
import { mropeSection, type TinyModelSpec, writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import { ConfigError } from "../../src/errors.ts";

const spec: TinyModelSpec = {
  hiddenSize: 128,
  intermediateSize: 384,
  layers: 4,
  heads: 4,
  kvHeads: 2,
  visionWidth: 96,
  visionLayers: 2,
  visionHeads: 3,
};

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "grove-model-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const json = async (name: string) => JSON.parse(await readFile(path.join(folder, name), "utf8"));

test("the folder has Qwen2-VL's files, and their ids agree with the tokenizer", async () => {
  const { vocabSize } = await writeModelFolder(folder, { spec, corpus: renderedCorpus() });
  expect((await readdir(folder)).sort()).toEqual([
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
  const tokenizer = await Tokenizer.load(folder);
  const id = (token: string) => tokenizer.encode(token)[0];
  const config = await json("config.json");
  expect(config).toMatchObject({
    model_type: "qwen2_vl",
    vocab_size: vocabSize,
    hidden_size: 128,
    image_token_id: id("<|image_pad|>"),
    video_token_id: id("<|video_pad|>"),
    vision_start_token_id: id("<|vision_start|>"),
    vision_end_token_id: id("<|vision_end|>"),
    rope_scaling: { type: "mrope", mrope_section: [4, 6, 6] },
    vision_config: { depth: 2, embed_dim: 96, num_heads: 3, hidden_size: 128 },
  });
  expect(tokenizer.vocabSize).toBe(vocabSize);
  expect(tokenizer.eosTokenIds).toEqual([id("<|im_end|>"), id("<|endoftext|>")]);
  expect(tokenizer.padTokenId).toBe(id("<|endoftext|>"));
  expect((await json("preprocessor_config.json")).patch_size).toBe(14);
});

test("the rotary sections fill half a head in Qwen2-VL's proportion", () => {
  expect(mropeSection(128)).toEqual([16, 24, 24]);
  for (const headDim of [16, 20, 24, 32, 48, 64]) {
    const [t, h, w] = mropeSection(headDim);
    expect(t + h + w).toBe(headDim / 2);
    expect(h).toBe(w);
  }
});

test.each([
  [{ heads: 3 }, "hiddenSize 128 is not a multiple of heads 3"],
  [{ kvHeads: 3 }, "heads 4 is not a multiple of kvHeads 3"],
  [{ visionHeads: 5 }, "visionWidth / visionHeads"],
])("a spec that does not fit is refused: %j", async (change, message) => {
  const attempt = writeModelFolder(path.join(folder, "bad"), { spec: { ...spec, ...change }, corpus: ["x"] });
  await expect(attempt).rejects.toThrow(ConfigError);
  await expect(attempt).rejects.toThrow(message);
});
