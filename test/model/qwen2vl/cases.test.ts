/**
 * More shapes against Hugging Face transformers (test/fixtures/qwen2vl-cases, by scripts/make-goldens.py): as many key-value heads as query
 * heads, seven times fewer, tied and untied heads, other M-RoPE sections; text alone, one image, several videos, images and videos mixed, odd
 * grids; all of them in one batch too, in training and in sampling.
 */

import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { mropePositions } from "../../../src/data/mrope.ts";
import { PrefillPlan } from "../../../src/model/attention.ts";
import { mediaOf, packGroups } from "../../../src/model/packed.ts";
import { Qwen2VL } from "../../../src/model/qwen2vl/model.ts";
import { originalName } from "../../../src/model/weights.ts";
import { Sampler } from "../../../src/rollout/sampler.ts";
import { scope } from "../../../src/torch/scope.ts";
import { fromArray } from "../../../src/torch/tensor.ts";
import type { Prompt } from "../../../src/types.ts";
import { Goldens, relativeError } from "../support.ts";

const VALUES = 1e-5; // float32, relative
const GRADIENTS = 1e-4;

const ROOT = fileURLToPath(new URL("../../fixtures/qwen2vl-cases/", import.meta.url));
const MODELS = readdirSync(ROOT).sort();
const CASES = ["text", "image", "videos", "mixed"];

const weightsOf = (goldens: Goldens) => CASES.flatMap((name) => goldens.numbers(`${name}.weights0`));

test("the shapes are the ones that are promised", () => {
  const shapes = MODELS.map((name) => {
    using model = Qwen2VL.load(ROOT + name, { device: "cpu", dtype: "float32" });
    const { numHeads, numKvHeads, mropeSection } = model.config.text;
    return [numHeads / numKvHeads, model.config.tieWordEmbeddings, mropeSection.join(":")];
  });
  expect(shapes).toEqual([
    [1, true, "2:1:1"],
    [7, false, "1:1:2"],
    [2, true, "5:1:2"],
  ]);
});

test.each(
  MODELS.flatMap((model) => CASES.map((name) => [model, name] as const)),
)("%s, %s: positions, vision features, logits", (folder, name) => {
  using goldens = new Goldens("goldens.safetensors", ROOT + folder);
  using model = Qwen2VL.load(ROOT + folder, { device: "cpu", dtype: "float32" });
  scope(() => {
    const { prompt, completions } = goldens.group(name);
    const { imageTokenId, videoTokenId } = model.config;
    const grids = (kind: "images" | "videos") => prompt[kind].map(({ grid }) => grid);
    const tokens = { image: imageTokenId, video: videoTokenId };
    const { positions } = mropePositions(prompt.inputIds, grids("images"), grids("videos"), tokens, 2);
    expect(Array.from(prompt.positions)).toEqual(Array.from(positions));
    const media = mediaOf([prompt]);
    const features = media.length === 0 ? null : model.visionFeatures(media);
    if (features !== null)
      expect(relativeError(features.toNumbers(), goldens.numbers(`${name}.features`))).toBeLessThan(VALUES);
    const row = packGroups([{ prompt, completions }]);
    using plan = new PrefillPlan([row.ids.length]);
    const logits = model.logits(model.forward(model.embed(row.ids, features), row.positions, plan));
    expect(logits.shape).toEqual(goldens.shape(`${name}.logits0`));
    expect(relativeError(logits.toNumbers(), goldens.numbers(`${name}.logits0`))).toBeLessThan(VALUES);
  });
});

test.each(MODELS)("%s: logprobs and gradients of all cases in one pack", (folder) => {
  using goldens = new Goldens("goldens.safetensors", ROOT + folder);
  using model = Qwen2VL.load(ROOT + folder, { device: "cpu", dtype: "float32" });
  const groups = CASES.map((name) => goldens.group(name));
  scope(() => {
    using pass = model.pass(packGroups(groups), { grad: true });
    const expected = CASES.flatMap((name) => goldens.numbers(`${name}.logprobs0`));
    expect(relativeError(pass.logprobs.toNumbers(), expected)).toBeLessThan(VALUES);
    const weights = weightsOf(goldens);
    pass.backward(fromArray(weights, [weights.length]));
    const sketches = JSON.parse(readFileSync(`${ROOT}${folder}/gradients.json`, "utf8")) as Record<string, number[]>;
    const theirs = new Map(Object.entries(sketches).map(([name, sketch]) => [originalName(name), sketch]));
    for (const { tensor, parts } of model.parameters) {
      const gradient = tensor.grad?.toNumbers() ?? [];
      const columns = tensor.numel / tensor.size(0);
      for (const { name, rows } of parts) {
        const [norm, projection] = theirs.get(name) as [number, number];
        const own = gradient.slice(rows[0] * columns, rows[1] * columns);
        const sum = (term: (g: number, k: number) => number) => own.reduce((total, g, k) => total + term(g, k), 0);
        expect(Math.abs(Math.sqrt(sum((g) => g * g)) / norm - 1), name).toBeLessThan(GRADIENTS);
        expect(Math.abs(sum((g, k) => g * Math.cos(0.7 * k)) - projection) / norm, name).toBeLessThan(GRADIENTS);
        theirs.delete(name);
      }
      tensor.setGrad(null);
    }
    expect([...theirs.keys()]).toEqual([]);
  });
});

/** Words are their ids; nothing is named <|vision_pad|>. */
const TOKENIZER = { vocabSize: 96, eosTokenIds: [94, 95], encode: () => Int32Array.of(1, 2), decode: () => "" };

test.each(MODELS)("%s: 64 greedy tokens of all cases in one batch, and of each alone", (folder) => {
  using goldens = new Goldens("goldens.safetensors", ROOT + folder);
  using model = Qwen2VL.load(ROOT + folder, { device: "cpu", dtype: "float32" });
  using sampler = new Sampler({ model, tokenizer: TOKENIZER, config: { maxConcurrent: 8 } });
  const prompts = CASES.map((name): Prompt => {
    const sample = { id: name, messages: [], solution: "", fields: {}, source: { file: "", line: 1 } };
    return { ...goldens.group(name).prompt, sample };
  });
  const options = { groupSize: 1, maxNewTokens: 64, seed: 0, step: 0, temperature: 1, topK: 0, topP: 1, greedy: true };
  const greedy = (some: Prompt[]) =>
    sampler.rolloutGroups(some, options).map(({ completions }) => Array.from(completions[0]?.ids ?? []));
  const expected = CASES.map((name) => goldens.numbers(`${name}.greedy`));
  expect(expected.map((ids) => ids.length)).toEqual([64, 64, 64, 64]);
  expect(greedy(prompts)).toEqual(expected);
  expect(prompts.flatMap((prompt) => greedy([prompt]))).toEqual(expected);
});
