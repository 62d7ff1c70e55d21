/** Parity with Hugging Face transformers on a tiny random model; the fixtures come from scripts/make-goldens.py. */

import { afterAll, expect, test } from "vitest";
import { PrefillPlan } from "../../../src/model/attention.ts";
import { mediaOf, packGroups } from "../../../src/model/packed.ts";
import { Qwen2VL } from "../../../src/model/qwen2vl/model.ts";
import { originalName } from "../../../src/model/weights.ts";
import { scope } from "../../../src/torch/scope.ts";
import { FIXTURES, Goldens, gradientsOf, relativeError } from "../support.ts";

const VALUES = 1e-5; // float32, relative
const GRADIENTS = 1e-4;

const goldens = new Goldens("goldens.safetensors");
const model = Qwen2VL.load(FIXTURES, { device: "cpu", dtype: "float32" });
afterAll(() => {
  goldens[Symbol.dispose]();
  model[Symbol.dispose]();
});

const cases = ["group", "image", "video", "text"];

test.each(cases)("%s: vision features, input embeddings, logits", (name) => {
  scope(() => {
    const { prompt, completions } = goldens.group(name);
    const media = mediaOf([prompt]);
    const features = media.length === 0 ? null : model.visionFeatures(media);
    if (features !== null)
      expect(relativeError(features.toNumbers(), goldens.numbers(`${name}.features`))).toBeLessThan(VALUES);
    const embeddings = model.embed(prompt.inputIds, features);
    expect(relativeError(embeddings.toNumbers(), goldens.numbers(`${name}.embeddings`))).toBeLessThan(VALUES);

    // transformers' row: the prompt with one completion behind it, as plain causal text
    completions.forEach((completion, i) => {
      const row = packGroups([{ prompt, completions: [completion] }]);
      using plan = new PrefillPlan([row.ids.length]);
      const logits = model.logits(model.forward(model.embed(row.ids, features), row.positions, plan));
      expect(logits.shape).toEqual(goldens.shape(`${name}.logits${i}`));
      expect(relativeError(logits.toNumbers(), goldens.numbers(`${name}.logits${i}`))).toBeLessThan(VALUES);
    });
  });
});

test.each(cases)("%s: logprobs of a packed group", (name) => {
  const group = goldens.group(name);
  using pass = model.pass(packGroups([group]), { grad: false });
  const expected = group.completions.flatMap((_, i) => goldens.numbers(`${name}.logprobs${i}`));
  expect(relativeError(pass.logprobs.toNumbers(), expected)).toBeLessThan(VALUES);
});

test("group: gradients of every parameter", () => {
  using expected = new Goldens("gradients.safetensors");
  const group = goldens.group("group");
  const weights = group.completions.flatMap((_, i) => goldens.numbers(`group.weights${i}`));
  const { gradients } = gradientsOf(model, [group], weights);
  const names = new Map(expected.names().map((name) => [originalName(name), name]));
  let compared = 0;
  for (const { name, parts, tensor } of model.parameters) {
    const columns = tensor.numel / (tensor.shape[0] as number);
    for (const part of parts) {
      const ours = (gradients.get(name) as number[]).slice(part.rows[0] * columns, part.rows[1] * columns);
      const theirs = expected.numbers(names.get(part.name) as string);
      expect(relativeError(ours, theirs), part.name).toBeLessThan(GRADIENTS);
      compared++;
    }
  }
  expect(compared).toBe(expected.names().length);
});

test("bfloat16 stays near float32", () => {
  using half = Qwen2VL.load(FIXTURES, { device: "cpu", dtype: "bfloat16" });
  const group = goldens.group("group");
  const expected = group.completions.flatMap((_, i) => goldens.numbers(`group.logprobs${i}`));
  const weights = group.completions.flatMap((_, i) => goldens.numbers(`group.weights${i}`));
  const { logprobs, gradients } = gradientsOf(half, [group], weights);
  expect(relativeError(logprobs, expected)).toBeLessThan(0.03); // 8 bits of mantissa over some twenty roundings
  const exact = gradientsOf(model, [group], weights).gradients;
  expect(relativeError([...gradients.values()].flat(), [...exact.values()].flat())).toBeLessThan(0.1);
});
