import { rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { PromptLoader } from "../../src/data/loader.ts";
import { Processor } from "../../src/data/processor.ts";
import { readConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { normal, randomInt } from "../../src/random.ts";
import { setNumThreads } from "../../src/torch/cuda.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { readTrainingData } from "../../src/trainer/assemble.ts";
import { packBatch, splitByTokens, type TrainPack } from "../../src/trainer/batch.ts";
import { grpoLoss } from "../../src/trainer/loss.ts";
import type { Prompt, RolloutGroup } from "../../src/types.ts";
import { fakeCompletion, fakeGroup } from "./fakes.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

const trainer = configSchema.parse({ model: { path: "unused" } }).trainer;
const two = [
  { ...fakeGroup([0, 0], "a", [2, 4]), advantages: [1, -1] },
  { ...fakeGroup([0, 0], "b", [1, 3]), advantages: [2, -2] },
];

test("units go into packs in order, within the budget; a large one alone", () => {
  const split = (sizes: number[]) => splitByTokens(sizes, (size) => size, 10);
  expect(split([4, 6, 1, 20, 3, 7, 1])).toEqual([[4, 6], [1], [20], [3, 7], [1]]);
  expect(split([])).toEqual([]);
});

test("sequence weights: a mean over tokens, then over the completions of the whole batch", () => {
  const [pack] = packBatch(two, trainer);
  const expected = [8, 8, 16, 16, 16, 16, 4, 12, 12, 12].map((denominator) => Math.fround(1 / denominator));
  expect([...(pack as TrainPack).weights]).toEqual(expected);
  expect([...(pack as TrainPack).advantages]).toEqual([1, 1, -1, -1, -1, -1, 2, -2, -2, -2]);
});

test("token weights: one mean over all tokens of the batch, however it is split into packs", () => {
  const packs = packBatch(two, { ...trainer, lossAggregation: "token", tokensPerPack: 1 });
  expect(packs).toHaveLength(2);
  for (const { weights } of packs) for (const weight of weights) expect(weight).toBeCloseTo(0.1, 8);
});

test.each([true, false])("everything per token is in the order of the targets (shared prefix: %s)", (sharedPrefix) => {
  const groups = two.map((group, g) => ({
    ...group,
    completions: group.completions.map(({ ids }, c) => {
      const own = ids.map((_, t) => 100 * g + 10 * c + t);
      return fakeCompletion(ids.length, { ids: own, logprobs: Float32Array.from(own) });
    }),
  }));
  for (const tokensPerPack of [1, 12, 1000]) {
    const packs = packBatch(groups, { ...trainer, sharedPrefix, tokensPerPack });
    const all = packs.flatMap(({ packed }) => [...packed.targets]);
    expect(all).toEqual([0, 1, 10, 11, 12, 13, 100, 110, 111, 112]);
    expect(packs.flatMap(({ samplerLogprobs }) => [...samplerLogprobs])).toEqual(all);
    expect(packs.flatMap(({ weights }) => [...weights]).reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 6);
  }
});

let world: TinyWorld;
let config: Config;
let groups: RolloutGroup[];

/** Three questions with pictures, each with completions of random tokens and unequal length. */
beforeAll(async () => {
  setNumThreads(1); // tensors this small are slower on several
  world = await makeTinyWorld();
  config = tinyConfig(world, "unused");
  const processor = await Processor.load(world.model, config.data);
  const loader = new PromptLoader({ processor, config: config.data });
  const samples = (await readTrainingData(config)).slice(0, 3);
  const prompts = await Promise.all(samples.map(async (sample) => (await loader.load(sample)) as Prompt));
  await loader.close();
  groups = prompts.map((prompt, g) => {
    const completions = [3, 7, 1, 5].map((length, c) => {
      const ids = Int32Array.from({ length }, (_, t) => randomInt(200, "id", g, c, t));
      return fakeCompletion(length, { ids });
    });
    const advantages = completions.map((_, c) => normal("advantage", g, c));
    return { prompt, completions, rewards: [], rewardBreakdown: {}, advantages };
  });
});
afterAll(() => rmSync(world.folder, { recursive: true }));

/** Loss and gradients of a batch; the reference is the policy with other weights. */
function lossAndGradients(dtype: DType, knobs: Partial<Config["trainer"]>): { loss: number; gradients: number[][] } {
  const options = { device: "cpu", dtype } as const;
  using model = Qwen2VL.random(readConfig(world.model), { ...options, seed: 1 });
  using reference = Qwen2VL.random(readConfig(world.model), { ...options, seed: 2 });
  const settings = { ...trainer, ...knobs };
  let loss = 0;
  for (const pack of packBatch(groups, settings)) {
    scope(() => {
      const type = dtype === "float64" ? "float64" : "float32";
      const perToken = (values: Float32Array) => fromArray(values, [values.length], { dtype: type });
      using frozen = reference.pass(pack.packed, { grad: false });
      using pass = model.pass(pack.packed, { grad: true });
      const { gradient, stats } = grpoLoss(
        {
          logprobs: pass.logprobs,
          entropy: pass.entropy,
          oldLogprobs: null,
          referenceLogprobs: frozen.logprobs,
          samplerLogprobs: perToken(pack.samplerLogprobs),
          advantages: perToken(pack.advantages),
          weights: perToken(pack.weights),
        },
        settings,
      );
      pass.backward(gradient);
      const [policy, kl] = stats.toNumbers() as [number, number];
      loss += policy + settings.klCoef * kl;
    });
  }
  const gradients = scope(() => model.parameters.map(({ tensor }) => tensor.grad!.toNumbers()));
  return { loss, gradients };
}

/** Largest difference of two gradients, relative to the largest entry of each parameter's. */
function worstDifference(a: number[][], b: number[][]): number {
  const perParameter = a.map((values, k) => {
    const scale = Math.max(...values.map(Math.abs), 1e-12);
    return Math.max(...values.map((value, i) => Math.abs(value - (b[k] as number[])[i]!))) / scale;
  });
  return Math.max(...perParameter);
}

// Weights and advantages are float32 numbers in either case, so float64 differs only by the order of its sums.
test.each([
  ["float64", 1e-11],
  ["float32", 2e-4],
] as const)("%s: loss and gradients do not depend on sharing the prompt or on the packs", (dtype, tolerance) => {
  const whole = lossAndGradients(dtype, { sharedPrefix: true, tokensPerPack: 100_000 });
  expect(Math.abs(whole.loss)).toBeGreaterThan(1e-3);
  for (const [sharedPrefix, tokensPerPack] of [
    [true, 1],
    [false, 100_000],
    [false, 1],
    [false, 500],
  ] as const) {
    const other = lossAndGradients(dtype, { sharedPrefix, tokensPerPack });
    expect(other.loss).toBeCloseTo(whole.loss, dtype === "float64" ? 12 : 5);
    expect(worstDifference(whole.gradients, other.gradients)).toBeLessThan(tolerance);
  }
});
