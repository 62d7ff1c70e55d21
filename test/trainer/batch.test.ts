import { rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { PromptLoader } from "../../src/data/loader.ts";
import { Processor } from "../../src/data/processor.ts";
import { PrefillPlan } from "../../src/model/attention.ts";
import { mediaOf, packGroups } from "../../src/model/packed.ts";
import { readConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { normal, randomInt } from "../../src/random.ts";
import { setNumThreads } from "../../src/torch/cuda.ts";
import { gather, logSoftmax, reshape, slice } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { readTrainingData } from "../../src/trainer/assemble.ts";
import { packBatch, splitByTokens, type TrainPack, unmaskSecondEos } from "../../src/trainer/batch.ts";
import { policyLoss } from "../../src/trainer/loss.ts";
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

test("unmaskSecondEos fills up completions that end by another end token, and nothing else", () => {
  const ends = { first: 50, pad: 51 };
  const completion = (ids: number[], finish: "stop" | "length" = "stop") =>
    fakeCompletion(ids.length, { ids: Int32Array.from(ids), finish });
  const group = {
    ...fakeGroup([0, 0, 0, 0, 0]),
    completions: [
      completion([1, 50]),
      completion([2, 51]),
      completion([3, 4, 5, 6, 7], "length"),
      completion([51]),
      completion([8, 9, 10, 11, 51]),
    ],
  };
  const other = { ...fakeGroup([0, 0]), completions: [completion([1, 51]), completion([50])] };
  const [filled, untouched] = unmaskSecondEos([group, other], ends) as [RolloutGroup, RolloutGroup];
  expect(filled.completions.map(({ ids }) => [...ids])).toEqual([
    [1, 50],
    [2, 51, 51, 51, 51],
    [3, 4, 5, 6, 7],
    [51, 51, 51, 51, 51],
    [8, 9, 10, 11, 51],
  ]);
  expect([...(filled.completions[1]?.logprobs ?? [])]).toEqual([-1, -1, NaN, NaN, NaN]);
  expect(untouched.completions).toEqual(other.completions); // the longest of its own group decides
  expect(group.completions[1]?.ids).toHaveLength(2); // what rewards and metrics see
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
      const { gradient, stats } = policyLoss(
        {
          logprobs: pass.logprobs,
          entropy: pass.entropy,
          oldLogprobs: null,
          referenceLogprobs: frozen.logprobs,
          samplerLogprobs: perToken(pack.samplerLogprobs),
          advantages: perToken(pack.advantages),
          weights: perToken(pack.weights),
          lengths: pack.lengths,
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

/** log p of every token of a row behind the prompt, by the plain causal forward over [prompt | row]. */
function rowLogprobs(model: Qwen2VL, prompt: Prompt, row: readonly number[]): number[] {
  const { ids, positions } = packGroups([{ prompt, completions: [Int32Array.from(row)] }]);
  return scope(() => {
    using plan = new PrefillPlan([ids.length]);
    const hidden = model.forward(model.embed(ids, model.visionFeatures(mediaOf([prompt]))), positions, plan);
    const first = prompt.inputIds.length - 1;
    const logits = logSoftmax(model.logits(slice(hidden, 0, first, first + row.length)), 1);
    return gather(
      logits,
      1,
      reshape(fromArray(Int32Array.from(row), [row.length], { dtype: "int64" }), [-1, 1]),
    ).toNumbers();
  });
}

test("with the second end token unmasked, loss, KL and gradient are those of the seed's padded rows", () => {
  const options = { device: "cpu", dtype: "float64" } as const;
  using model = Qwen2VL.random(readConfig(world.model), { ...options, seed: 1 });
  using reference = Qwen2VL.random(readConfig(world.model), { ...options, seed: 2 });
  const [first, pad] = [201, 202];
  // Lengths 3, 7, 1, 5: ended by the second end token, cut off (hence the longest), by the first, by the first.
  const drawn = groups.map((group) => ({
    ...group,
    completions: group.completions.map((completion, c) => {
      const end = [pad, undefined, first, first][c];
      const ids = Int32Array.from(completion.ids);
      if (end !== undefined) ids[ids.length - 1] = end;
      return { ...completion, ids, finish: end === undefined ? ("length" as const) : ("stop" as const) };
    }),
  }));

  // The seed, line by line: rows padded on the right, mask up to the first `first`, mean over a row, mean over rows.
  let loss = 0;
  let kl = 0;
  const gradient: number[] = [];
  const { klCoef, klClamp } = trainer;
  for (const { prompt, completions, advantages } of drawn) {
    const longest = Math.max(...completions.map(({ ids }) => ids.length));
    const rows = completions.map(({ ids }) => [...ids, ...new Array<number>(longest - ids.length).fill(pad)]);
    for (const [c, row] of rows.entries()) {
      const end = row.indexOf(first);
      const counted = end < 0 ? longest : end + 1;
      const policy = rowLogprobs(model, prompt, row);
      const frozen = rowLogprobs(reference, prompt, row);
      const share = 1 / (drawn.length * completions.length * counted);
      for (let t = 0; t < counted; t++) {
        const d = Math.min(klClamp, Math.max(-klClamp, (frozen[t] as number) - (policy[t] as number)));
        const k3 = Math.exp(d) - d - 1;
        loss += share * (-(advantages[c] as number) + klCoef * k3);
        kl += share * k3;
        gradient.push(share * (-(advantages[c] as number) + klCoef * (1 - Math.exp(d))));
      }
    }
  }

  for (const sharedPrefix of [true, false]) {
    const packs = packBatch(unmaskSecondEos(drawn, { first, pad }), {
      ...trainer,
      sharedPrefix,
      tokensPerPack: 100_000,
    });
    const ours = scope(() => {
      const { packed, weights, advantages, samplerLogprobs, lengths } = packs[0] as TrainPack;
      const perToken = (values: Float32Array) => fromArray(values, [values.length], { dtype: "float64" });
      using frozen = reference.pass(packed, { grad: false });
      using pass = model.pass(packed, { grad: true });
      const result = policyLoss(
        {
          logprobs: pass.logprobs,
          entropy: pass.entropy,
          oldLogprobs: null,
          referenceLogprobs: frozen.logprobs,
          samplerLogprobs: perToken(samplerLogprobs),
          advantages: perToken(advantages),
          weights: perToken(weights),
          lengths,
        },
        trainer,
      );
      return { stats: result.stats.toNumbers(), gradient: result.gradient.toNumbers() };
    });
    expect(packs).toHaveLength(1);
    const [surrogate, klLoss, , , , gap, gapMax] = ours.stats as [
      number,
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    expect(surrogate + klCoef * klLoss).toBeCloseTo(loss, 6); // weights and advantages are float32
    expect(klLoss).toBeCloseTo(kl, 6);
    expect(ours.gradient).toHaveLength(gradient.length);
    for (const [i, value] of gradient.entries()) expect(ours.gradient[i]).toBeCloseTo(value, 7);
    for (const value of [gap, gapMax]) expect(value).toBeGreaterThan(0); // NaN where nothing was drawn stays out of them
  }
  // Without the switch the padding is left out: another loss.
  const plain = packBatch(drawn, trainer).reduce((sum, pack) => sum + pack.weights.length, 0);
  expect(plain).toBe(gradient.length - 3 * 4);
});

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
