/** The packed pass against plainer ways to the same numbers, in float64. */

import { afterAll, expect, test } from "vitest";
import { mediaOf, type PackedGroup, packGroups } from "../../src/model/packed.ts";
import { normal } from "../../src/random.ts";
import { copy_, zeros } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gradientsOf, randomGroup, relativeError, shakenModel, tinyConfig } from "./support.ts";

const EXACT = 1e-10; // float64: other orders of summation, nothing else

const config = tinyConfig();
const model = shakenModel(config, 11);
afterAll(() => model[Symbol.dispose]());

const groups: PackedGroup[] = [
  randomGroup(config, 1, { videos: [[2, 4, 6]], images: [[1, 2, 4]], completions: [5, 1, 7] }),
  randomGroup(config, 2, {
    images: [
      [1, 6, 2],
      [1, 4, 4],
    ],
    completions: [4, 0, 6],
  }), // one completion without a token
  randomGroup(config, 3, { completions: [3] }),
  randomGroup(config, 4, {
    videos: [
      [1, 4, 4],
      [3, 2, 2],
    ],
    text: 0,
    completions: [2, 9],
  }),
];

const weightsFor = (count: number, key: string) => Float64Array.from({ length: count }, (_, i) => normal(key, i));
const tokens = (some: PackedGroup[]) =>
  some.flatMap((group) => group.completions).reduce((sum, ids) => sum + ids.length, 0);

function expectSameGradients(a: Map<string, number[]>, b: Map<string, number[]>, tolerance: number): void {
  for (const [name, values] of b) expect(relativeError(a.get(name) as number[], values), name).toBeLessThan(tolerance);
}

test("a packed group equals one row per completion, in logprobs, entropies and gradients", () => {
  const group = groups[0] as PackedGroup;
  const weights = weightsFor(tokens([group]), "weights");
  const packed = gradientsOf(model, [group], weights);
  const total = new Map<string, number[]>();
  const logprobs: number[] = [];
  const entropy: number[] = [];
  for (const completion of group.completions) {
    const own = weights.subarray(logprobs.length, logprobs.length + completion.length);
    const row = gradientsOf(model, [{ prompt: group.prompt, completions: [completion] }], own, { attention: "dense" });
    logprobs.push(...row.logprobs);
    entropy.push(...row.entropy);
    for (const [name, values] of row.gradients) {
      total.set(
        name,
        values.map((value, i) => value + (total.get(name)?.[i] ?? 0)),
      );
    }
  }
  expect(relativeError(packed.logprobs, logprobs)).toBeLessThan(EXACT);
  expect(relativeError(packed.entropy, entropy)).toBeLessThan(EXACT);
  expectSameGradients(packed.gradients, total, EXACT);
});

test("several groups in one pack equal each group alone", () => {
  const weights = weightsFor(tokens(groups), "several");
  const together = gradientsOf(model, groups, weights);
  const total = new Map<string, number[]>();
  const logprobs: number[] = [];
  for (const group of groups) {
    const count = tokens([group]);
    const alone = gradientsOf(model, [group], weights.subarray(logprobs.length, logprobs.length + count));
    logprobs.push(...alone.logprobs);
    for (const [name, values] of alone.gradients) {
      total.set(
        name,
        values.map((value, i) => value + (total.get(name)?.[i] ?? 0)),
      );
    }
  }
  expect(relativeError(together.logprobs, logprobs)).toBeLessThan(EXACT);
  expectSameGradients(together.gradients, total, EXACT);
});

test("the fused attention equals the dense one", () => {
  const weights = weightsFor(tokens(groups), "fused");
  const fused = gradientsOf(model, groups, weights, { attention: "fused" });
  const dense = gradientsOf(model, groups, weights, { attention: "dense" });
  expect(relativeError(fused.logprobs, dense.logprobs)).toBeLessThan(EXACT);
  expectSameGradients(fused.gradients, dense.gradients, EXACT);
});

test("recomputing layers changes nothing, to the last bit", () => {
  const weights = weightsFor(tokens(groups), "recompute");
  const none = gradientsOf(model, groups, weights, { recompute: "none" });
  const layer = gradientsOf(model, groups, weights, { recompute: "layer" });
  expect(layer.logprobs).toEqual(none.logprobs);
  expect(layer.gradients).toEqual(none.gradients);
});

test.each([false, true])("gradients agree with finite differences (tied head: %s)", (tied) => {
  using checked = shakenModel(tinyConfig(tied), 12);
  const pair = groups.slice(0, 2);
  const weights = weightsFor(tokens(pair), "finite");
  const { gradients } = gradientsOf(checked, pair, weights);
  const loss = () =>
    scope(() => {
      using pass = checked.pass(packGroups(pair), { grad: false });
      return pass.logprobs.toNumbers().reduce((sum, logprob, i) => sum + logprob * (weights[i] as number), 0);
    });
  const step = 1e-5;
  for (const { name, tensor } of checked.parameters) {
    const gradient = gradients.get(name) as number[];
    const entry = gradient.reduce(
      (best, value, i) => (Math.abs(value) > Math.abs(gradient[best] as number) ? i : best),
      0,
    );
    const shift = (by: number) =>
      scope(() => {
        const values = Float64Array.from(tensor.toNumbers());
        values[entry] = (values[entry] as number) + by;
        copy_(tensor, fromArray(values, tensor.shape));
      });
    shift(step);
    const above = loss();
    shift(-2 * step);
    const below = loss();
    shift(step);
    const numeric = (above - below) / (2 * step);
    expect(Math.abs(numeric - (gradient[entry] as number)) / Math.abs(numeric), name).toBeLessThan(1e-6);
  }
});

test("gradients add up in memory that was set beforehand", () => {
  const group = groups[0] as PackedGroup;
  const weights = weightsFor(tokens([group]), "accumulate");
  const { gradients } = gradientsOf(model, [group], weights);
  scope(() => {
    const buffers = model.parameters.map(({ tensor }) => {
      const buffer = zeros(tensor.shape, { dtype: "float64" });
      tensor.setGrad(buffer);
      return buffer;
    });
    for (let i = 0; i < 2; i++) {
      using pass = model.pass(packGroups([group]), { grad: true });
      pass.backward(fromArray(weights, [weights.length]));
    }
    model.parameters.forEach(({ name, tensor }, i) => {
      const doubled = (gradients.get(name) as number[]).map((value) => 2 * value);
      expect(relativeError((buffers[i] as Tensor).toNumbers(), doubled), name).toBeLessThan(EXACT);
      tensor.setGrad(null);
    });
  });
});

test("a frozen vision tower, fresh or cached: the same logprobs, the same language gradients, none for the tower", () => {
  const weights = weightsFor(tokens(groups), "frozen");
  const full = gradientsOf(model, groups, weights);
  const frozen = gradientsOf(model, groups, weights, { freezeVision: true });
  const cached = scope(() => {
    const visionCache = groups.map(({ prompt }) => {
      const media = mediaOf([prompt]);
      return media.length === 0 ? null : model.visionFeatures(media);
    });
    return gradientsOf(model, groups, weights, { visionCache });
  });
  for (const result of [frozen, cached]) {
    expect(relativeError(result.logprobs, full.logprobs)).toBeLessThan(EXACT);
    for (const [name, values] of result.gradients) {
      if (name.startsWith("visual."))
        expect(
          values.every((value) => value === 0),
          name,
        ).toBe(true);
      else expect(relativeError(values, full.gradients.get(name) as number[]), name).toBeLessThan(EXACT);
    }
  }
});

test("entropy is that of the whole distribution, and no pass leaks", () => {
  const before = liveTensors();
  scope(() => {
    using pass = model.pass(packGroups(groups), { grad: true });
    const uniform = Math.log(config.text.vocabSize);
    for (const value of pass.entropy.toNumbers()) {
      expect(value).toBeGreaterThan(0);
      expect(value).toBeLessThan(uniform);
    }
  }); // disposed without a backward
  expect(liveTensors()).toEqual(before);
});

test("misuse is refused", () => {
  scope(() => {
    using pass = model.pass(packGroups([groups[2] as PackedGroup]), { grad: true });
    expect(() => pass.backward(fromArray([1, 2], [2]))).toThrow("expected dLogprobs [3], got [2]");
    pass.backward(pass.logprobs);
    expect(() => pass.backward(pass.logprobs)).toThrow("one backward");
    using reference = model.pass(packGroups([groups[2] as PackedGroup]), { grad: false });
    expect(() => reference.backward(reference.logprobs)).toThrow("grad: false");
    for (const { tensor } of model.parameters) tensor.setGrad(null);
    expect(() => model.embed(Int32Array.of(1, config.imageTokenId), null)).toThrow("features of 1 placeholder");
    const odd = { pixels: new Float32Array(3 * 24), grid: [1, 3, 1] as [number, number, number] };
    expect(() => model.visionFeatures([odd])).toThrow("divide by 2");
  });
});
