import { afterAll, expect, test } from "vitest";
import { Adapter, type LoraSettings } from "../../src/model/adapter.ts";
import { dropped } from "../../src/model/lora.ts";
import { type PackedGroup, packGroups } from "../../src/model/packed.ts";
import type { PassOptions } from "../../src/model/pass.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { copyParameters } from "../../src/model/weights.ts";
import { normal } from "../../src/random.ts";
import { copy_, ones } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { gradientsOf, randomGroup, relativeError, shakenModel, tinyConfig } from "./support.ts";

const LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const VISION = ["qkv", "proj", "fc1", "fc2"];

const config = tinyConfig();
const settings = (targets: readonly string[], more: Partial<LoraSettings> = {}): LoraSettings => ({
  rank: 3,
  alpha: 5,
  rslora: false,
  dropout: 0,
  targets,
  ...more,
});
const groups = [
  randomGroup(config, 1, { images: [[1, 4, 2]], videos: [[2, 4, 4]], completions: [5, 3, 7] }),
  randomGroup(config, 2, { images: [[1, 2, 2]], completions: [2, 6] }),
];
const tokens = groups.flatMap(({ completions }) => completions).reduce((sum, { length }) => sum + length, 0);
const weights = Float64Array.from({ length: tokens }, (_, i) => normal(9, "weight", i));

/** A model with an adapter of random numbers beside it; its own weights are frozen. */
function withAdapter(
  targets: readonly string[],
  more: Partial<LoraSettings> = {},
  dtype: "float32" | "float64" = "float64",
) {
  const base = shakenModel(config, 3, dtype);
  for (const { tensor } of base.parameters) tensor.setRequiresGrad(false);
  const adapter = Adapter.create(config, settings(targets, more), { device: "cpu", dtype, seed: 4 });
  for (const { name, tensor } of adapter.parameters) {
    if (!name.includes("lora_B")) continue;
    const noise = Float64Array.from({ length: tensor.numel }, (_, i) => 0.3 * normal(5, name, i));
    scope(() => copy_(tensor, fromArray(noise, tensor.shape, { dtype })));
  }
  return base.withAdapter(adapter);
}

/** The same model with the adapter added to its weights. */
function mergedCopy(model: Qwen2VL): Qwen2VL {
  const parameters = copyParameters(model.parameters);
  model.adapter?.mergeInto(parameters);
  for (const { tensor } of parameters) tensor.setRequiresGrad(true);
  return Qwen2VL.over(config, parameters, model);
}

/** Gradients of the adapter's matrices. */
function adapterGradients(model: Qwen2VL, some: PackedGroup[], options: Omit<PassOptions, "grad"> = {}) {
  const parameters = model.adapter?.parameters ?? [];
  for (const { tensor } of parameters) tensor.setGrad(null);
  return scope(() => {
    using pass = model.pass(packGroups(some), { grad: true, ...options });
    pass.backward(fromArray(weights.slice(0, pass.logprobs.numel), [pass.logprobs.numel]));
    const gradients = new Map(parameters.map(({ name, tensor }) => [name, tensor.grad?.toNumbers() ?? []]));
    return { logprobs: pass.logprobs.toNumbers(), gradients };
  });
}

const logprobsOf = (model: Qwen2VL) =>
  scope(() => {
    using pass = model.pass(packGroups(groups), { grad: false });
    return pass.logprobs.toNumbers();
  });

const before = liveTensors().count;
afterAll(() => expect(liveTensors().count).toBe(before));

test.each([
  [LANGUAGE, false],
  [VISION, false],
  [[...LANGUAGE, ...VISION], true],
  [["v_proj"], false],
  [["q_proj", "v_proj", "up_proj", "fc2"], false],
])("an adapter at %s (rslora %s) is what merging it is, gradients too", (targets, rslora) => {
  using model = withAdapter(targets, { rslora });
  using merged = mergedCopy(model);
  const { logprobs, gradients } = adapterGradients(model, groups);
  const expected = gradientsOf(merged, groups, weights);
  expect(relativeError(logprobs, expected.logprobs)).toBeLessThan(1e-12);
  expect(relativeError(logprobs, baseLogprobs(model))).toBeGreaterThan(1e-3);

  // d/dA = scale B^T dW and d/dB = scale dW A^T, dW the gradient of the merged weight
  const adapter = model.adapter as Adapter;
  const scale = 5 / (rslora ? Math.sqrt(3) : 3);
  const numbers = new Map(adapter.parameters.map(({ name, tensor }) => [name, tensor.toNumbers()]));
  for (const { name, parts, tensor } of adapter.parameters) {
    if (!name.endsWith("lora_A.weight")) continue;
    const weight = name.replace(".lora_A.weight", "");
    const dW = expected.gradients.get(`${weight}.weight`) as number[];
    const b = numbers.get(name.replace("lora_A", "lora_B")) as number[];
    const a = numbers.get(name) as number[];
    const K = tensor.size(1);
    const base = merged.parameters.find((one) => one.name === `${weight}.weight`);
    const dA = Array<number>(a.length).fill(0);
    const dB = Array<number>(b.length).fill(0);
    let row = 0;
    for (const { name: part, rows } of parts) {
      const stored = part.replace(".lora_A.weight", ".weight");
      const [begin, end] = base?.parts.find((one) => one.name === stored)?.rows as [number, number];
      for (let o = begin; o < end; o++, row++) {
        for (let r = 0; r < 3; r++) {
          for (let k = 0; k < K; k++) {
            const d = scale * (dW[o * K + k] as number);
            dA[(rows[0] + r) * K + k] = (dA[(rows[0] + r) * K + k] as number) + d * (b[row * 3 + r] as number);
            dB[row * 3 + r] = (dB[row * 3 + r] as number) + d * (a[(rows[0] + r) * K + k] as number);
          }
        }
      }
    }
    expect(relativeError(gradients.get(name) as number[], dA)).toBeLessThan(1e-10);
    expect(relativeError(gradients.get(name.replace("lora_A", "lora_B")) as number[], dB)).toBeLessThan(1e-10);
  }
});

test("in float32 the sampler's pass, the trainer's and the merged model's agree", () => {
  using model = withAdapter([...LANGUAGE, ...VISION], {}, "float32");
  using merged = mergedCopy(model);
  expect(relativeError(logprobsOf(model), logprobsOf(merged))).toBeLessThan(1e-5);
});

test("the model without its adapter is the base, bit for bit, and a new adapter adds nothing", () => {
  const base = shakenModel(config, 3, "float32");
  const expected = logprobsOf(base);
  using model = withAdapter([...LANGUAGE, ...VISION], {}, "float32");
  expect(baseLogprobs(model)).toEqual(expected);
  const adapter = Adapter.create(config, settings(LANGUAGE), { device: "cpu", dtype: "float32", seed: 1 });
  using fresh = base.withAdapter(adapter);
  expect(logprobsOf(fresh)).toEqual(expected);
});

test("layers computed again give the same bits, the frozen weights no gradient", () => {
  for (const dropout of [0, 0.4]) {
    using model = withAdapter([...LANGUAGE, ...VISION], { dropout }, "float32");
    const pack = packGroups(groups);
    const patches = groups.flatMap(({ prompt }) => [...prompt.images, ...prompt.videos]);
    const rows = patches.reduce((sum, { grid: [t, h, w] }) => sum + t * h * w, 0);
    const words = {
      text: Int32Array.from({ length: pack.ids.length }, (_, i) => (i * 0x9e3779b1) | 0),
      vision: Int32Array.from({ length: rows }, (_, i) => (i * 0x85ebca6b) | 0),
    };
    const kept = adapterGradients(model, groups, { recompute: "none", dropout: words });
    const again = adapterGradients(model, groups, { recompute: "layer", dropout: words });
    expect(again.logprobs).toEqual(kept.logprobs);
    expect([...again.gradients]).toEqual([...kept.gradients]);
    for (const { tensor } of model.parameters) expect(tensor.grad).toBeNull();
    const plain = adapterGradients(model, groups);
    expect(relativeError(kept.logprobs, plain.logprobs) > 1e-3).toBe(dropout > 0);
  }
});

test("dropout drops its share of each column and row, by the row's word and the adapter, whatever the company", () => {
  const drop = (words: number[], key: number, columns = 300) =>
    scope(() =>
      dropped(ones([words.length, columns]), fromArray(Int32Array.from(words), [words.length], { dtype: "int32" }), {
        dropout: 0.25,
        key,
      }).toNumbers(),
    );
  const words = Array.from({ length: 400 }, (_, i) => i);
  const all = drop(words, 11);
  const share = (some: number[]) => some.filter((x) => x === 0).length / some.length;
  expect(new Set(all.map((x) => Math.fround(x)))).toEqual(new Set([0, Math.fround(4 / 3)]));
  expect(Math.abs(share(all) - 0.25)).toBeLessThan(0.01);
  for (let c = 0; c < 300; c += 37)
    expect(Math.abs(share(words.map((_, i) => all[i * 300 + c] as number)) - 0.25)).toBeLessThan(0.1);
  for (let i = 0; i < 400; i += 57)
    expect(Math.abs(share(all.slice(i * 300, i * 300 + 300)) - 0.25)).toBeLessThan(0.12);
  expect(drop([399, 7], 11)).toEqual([...all.slice(399 * 300), ...all.slice(7 * 300, 8 * 300)]);
  expect(drop(words, 12)).not.toEqual(all);
});

test("a new adapter is a function of the seed and of its names: PEFT's bounds for A, zeros for B", () => {
  const make = (seed: number, targets: string[]) =>
    Adapter.create(config, settings(targets), { device: "cpu", dtype: "float32", seed });
  using one = make(1, LANGUAGE);
  using same = make(1, ["q_proj"]);
  using other = make(2, LANGUAGE);
  const rowsOf = (adapter: Adapter, i = 0) => adapter.parameters[i]?.tensor.toNumbers().slice(0, 3 * 32) as number[];
  expect(rowsOf(one)).toEqual(rowsOf(same));
  expect(rowsOf(one)).not.toEqual(rowsOf(other));
  for (const { name, tensor } of one.parameters) {
    const values = tensor.toNumbers();
    if (name.includes("lora_B")) expect(values.every((x) => x === 0)).toBe(true);
    else {
      const bound = 1 / Math.sqrt(tensor.size(1));
      expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(bound);
      const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
      expect(Math.abs(variance / (bound * bound) - 1 / 3)).toBeLessThan(0.15);
    }
  }
});

function baseLogprobs(model: Qwen2VL): number[] {
  using base = model.withoutAdapter();
  return logprobsOf(base);
}

test("a pack without pictures gives an adapter of the vision tower alone nothing", () => {
  using model = withAdapter(VISION);
  const text = randomGroup(config, 3, { completions: [4, 2] });
  const { gradients } = adapterGradients(model, [text]);
  expect([...gradients.values()].flat()).toEqual([]);
});
