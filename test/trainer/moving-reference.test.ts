/** The reference follows the policy by the formula, also in bfloat16; runs with one resume bit for bit; the entropy bonus keeps entropy up. */

import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { sampleIndices } from "../../src/data/order.ts";
import type { Parameter } from "../../src/model/parameter.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { hash64 } from "../../src/random.ts";
import { philox4x32 } from "../../src/rollout/philox.ts";
import { cast, clone, slice } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { moveParts, moveReference } from "../../src/trainer/moving-reference.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const metricsOf = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl"));
const parameter = (tensor: Tensor): Parameter => ({ name: "w", tensor, parts: [] });

test("float32: decay * reference + (1 - decay) * policy; decay 0 is a copy", () => {
  scope(() => {
    const reference = fromArray([1, -2, 3], [3]);
    const policy = fromArray([2, -2, -1], [3]);
    moveReference([parameter(reference)], [parameter(policy)], { decay: 0.75, seed: 1, step: 0 });
    expect(reference.toNumbers()).toEqual([1.25, -2, 2]);
    moveReference([parameter(reference)], [parameter(policy)], { decay: 0, seed: 1, step: 1 });
    expect(reference.toNumbers()).toEqual([2, -2, -1]);
    expect(policy.toNumbers()).toEqual([2, -2, -1]);
  });
});

test("bfloat16: the average moves although each of its steps is far below the distance of two numbers", () => {
  scope(() => {
    const N = 4096;
    const half = (value: number) => cast(fromArray(new Array(N).fill(value), [N]), "bfloat16");
    // Neighbours of 1 and -1 are 2^-7 away above and 2^-8 below: 200 steps of 0.5 % go 63 % of the way on average.
    for (const [from, to] of [
      [1, 1 + 2 ** -7],
      [-1, -1 - 2 ** -7],
      [1, 1 - 2 ** -8],
    ] as const) {
      const [reference, policy] = [half(from), half(to)];
      for (let step = 0; step < 200; step++)
        moveReference([parameter(reference)], [parameter(policy)], { decay: 0.995, seed: 1, step });
      const values = cast(reference, "float32").toNumbers();
      expect(new Set(values)).toEqual(new Set([from, to]));
      const moved = values.filter((value) => value === to).length / N;
      expect(Math.abs(moved - (1 - 0.995 ** 200))).toBeLessThan(4 * Math.sqrt(0.25 / N));
    }
    const still = half(0.7);
    const before = still.toNumbers();
    moveReference([parameter(still)], [parameter(clone(still))], { decay: 0.995, seed: 1, step: 0 });
    expect(still.toNumbers()).toEqual(before);
  });
});

test("bfloat16: each weight goes to one of its two neighbours, by the word of its place", () => {
  scope(() => {
    const N = 1003;
    const values = (factor: number) =>
      cast(
        fromArray(
          Array.from({ length: N }, (_, i) => Math.sin(i * factor) * 2 ** ((i % 40) - 20)),
          [N],
        ),
        "bfloat16",
      );
    for (const [decay, begin] of [
      [0.995, 0],
      [0.7, 5],
      [0.25, 1],
    ] as const) {
      const [reference, policy] = [values(1), values(1.3)];
      const [x, y] = [reference.toNumbers(), policy.toNumbers()];
      const own = () => slice(reference, 0, begin, N);
      moveParts([{ name: "w", begin, end: N, own }], [parameter(policy)], { decay, seed: 3, step: 8 });
      const key = hash64(3, "reference", "w");
      const expected = x.map((from, i) => {
        if (i < begin) return from;
        const share = Math.fround(1 - decay);
        const way = Math.fround((y[i] as number) - from);
        const exact =
          share < 0.5
            ? Math.fround(from + Math.fround(share * way))
            : Math.fround((y[i] as number) - Math.fround(way * Math.fround(1 - share)));
        const word = philox4x32([i >>> 2, 0, 8, 0], key)[i % 4] as number;
        const bits = new Uint32Array(Float32Array.of(exact).buffer);
        bits[0] = (((bits[0] as number) + (word & 0xffff)) & 0xffff0000) >>> 0;
        return new Float32Array(bits.buffer)[0];
      });
      expect(reference.toNumbers()).toEqual(expected);
    }
  });
});

test("the draws of the rounding are a function of seed and step", () => {
  scope(() => {
    const half = (value: number) => cast(fromArray(new Array(64).fill(value), [64]), "bfloat16");
    const moved = (seed: number, step: number) => {
      const reference = half(1);
      moveReference([parameter(reference)], [parameter(half(1 + 2 ** -7))], { decay: 0.5, seed, step });
      return reference.toNumbers();
    };
    expect(moved(1, 0)).toEqual(moved(1, 0));
    expect(moved(1, 1)).not.toEqual(moved(1, 0));
    expect(moved(2, 0)).not.toEqual(moved(1, 0));
  });
});

test.each([
  "float32",
  "bfloat16",
] as const)("%s: parts of a parameter become what they become in the whole", (dtype) => {
  scope(() => {
    const N = 1000;
    const numbers = (factor: number) => Array.from({ length: N }, (_, i) => Math.sin(i * factor));
    const make = (factor: number) => cast(fromArray(numbers(factor), [N]), dtype);
    const [whole, policy] = [make(1), make(1.01)];
    moveReference([parameter(whole)], [parameter(policy)], { decay: 0.7, seed: 1, step: 4 });
    const cut = make(1);
    for (const [begin, end] of [
      [0, 1],
      [1, 700],
      [700, N],
    ] as const) {
      const own = () => slice(cut, 0, begin, end);
      moveParts([{ name: "w", begin, end, own }], [parameter(policy)], { decay: 0.7, seed: 1, step: 4 });
    }
    expect(cut.toNumbers()).toEqual(whole.toNumbers());
    expect(cut.toNumbers()).not.toEqual(make(1).toNumbers());
  });
});

const trainer = { questionsPerStep: 3, steps: 5, saveEvery: 1, keepLast: 9, klCoef: 0.1 };

test("a reference that is replaced every step has no distance but that of one step", async () => {
  const fixed = tinyConfig(world, "fixed", { trainer });
  await trainGrpo(fixed);
  const fresh = tinyConfig(world, "fresh", { trainer: { ...trainer, referenceEvery: 1 } });
  await trainGrpo(fresh);
  for (const line of metricsOf(fresh)) expect(line["loss/kl"]).toBeLessThan(1e-9);
  expect(metricsOf(fixed)[4]?.["loss/kl"]).toBeGreaterThan(1e-7);
  expect(metricsOf(fresh)[4]?.["memory/live_tensors"]).toBe(metricsOf(fixed)[4]?.["memory/live_tensors"]);
  expect(existsSync(path.join(fixed.runDir, "checkpoint-2", "reference"))).toBe(false);
});

test.each([
  "float32",
  "bfloat16",
] as const)("%s: a checkpoint has the reference, and a resumed run goes on with it bit for bit", async (dtype) => {
  const moving = (name: string): Config => ({
    ...tinyConfig(world, `${name} ${dtype}`, {
      trainer: { ...trainer, referenceEvery: 2, referenceDecay: 0.5 },
      optimizer: { learningRate: 5e-3, schedule: "constant" },
    }),
    dtype,
  });
  const straight = moving("straight");
  await trainGrpo(straight);
  const resumed = moving("resumed");
  cpSync(straight.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-4", "checkpoint-5", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(straight).map(deterministic));
  for (const file of ["final/model.safetensors", "checkpoint-5/reference/model.safetensors"]) {
    const [a, b] = [straight, resumed].map(({ runDir }) => readFileSync(path.join(runDir, file)));
    expect(a?.equals(b as Buffer), file).toBe(true);
  }
  if (dtype === "bfloat16") return;
  // Half of what it was after step 2 and half of the policy after step 4; untouched by step 3.
  const read = (file: string) => {
    using weights = new SafetensorsFile(path.join(straight.runDir, file));
    return scope(() => weights.tensor("model.layers.0.mlp.down_proj.weight").toNumbers());
  };
  const [second, third, fourth] = [2, 3, 4].map((step) => read(`checkpoint-${step}/reference/model.safetensors`));
  expect(third).toEqual(second);
  const policy = read("checkpoint-4/model/model.safetensors");
  for (const [i, value] of (fourth ?? []).entries())
    expect(value).toBeCloseTo(((second?.[i] as number) + (policy[i] as number)) / 2, 6);
});

test("a saved reference of a run that began with a merged adapter has it in its weights: resuming merges none once more", async () => {
  const adapted = tinyConfig(world, "adapted", {
    lora: { rank: 2, alpha: 4 },
    trainer: { ...trainer, steps: 2 },
    optimizer: { learningRate: 0.05, schedule: "constant" },
  });
  const { finalDir } = await trainGrpo(adapted);
  const model = { path: world.model, init: "random", adapter: path.join(finalDir as string, "adapter") };
  const moving = (name: string): Config =>
    tinyConfig(world, name, { model, trainer: { ...trainer, referenceEvery: 2, referenceDecay: 0.5 } });
  const straight = moving("merged straight");
  await trainGrpo(straight);
  const resumed = moving("merged resumed");
  cpSync(straight.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-3", "checkpoint-4", "checkpoint-5", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(straight).map(deterministic));
});

test("the reference moves in its turn also where no question of the step can be used", async () => {
  const questions = path.join(world.folder, "lost.jsonl");
  const records = readFileSync(world.questions, "utf8").trim().split("\n");
  const order = sampleIndices(records.length, 1, 1, 7);
  const lost = records.map((line, i) => (order.includes(i) ? line.replace(/"image":"\w+/, '"image":"nowhere') : line));
  writeFileSync(questions, lost.join("\n"));
  const config = tinyConfig(world, "lost", {
    data: { train: [{ file: questions, format: "generic" }], workers: 1, cacheGib: 0, onBadSample: "skip" },
    trainer: { ...trainer, questionsPerStep: 1, steps: 2, referenceEvery: 2 },
  });
  await trainGrpo(config);
  expect(metricsOf(config).map((line) => line["data/questions"])).toEqual([1, 0]);
  const [policy, reference] = ["model", "reference"].map((part) =>
    readFileSync(path.join(config.runDir, "checkpoint-2", part, "model.safetensors")),
  );
  expect(reference?.equals(policy as Buffer)).toBe(true);
});

test("an entropy bonus is part of the loss, and keeps the policy unsure", async () => {
  const run = async (entropyCoef: number) => {
    const config = tinyConfig(world, `entropy ${entropyCoef}`, {
      rollout: { groupSize: 8, maxNewTokens: 12 },
      trainer: { questionsPerStep: 4, steps: 30, saveEvery: 0, klCoef: 0, entropyCoef },
      optimizer: { learningRate: 5e-3, schedule: "constant" },
    });
    await trainGrpo(config);
    return metricsOf(config);
  };
  const [none, some] = [await run(0), await run(1)];
  for (const line of some)
    expect(line["loss/total"]).toBeCloseTo((line["loss/policy"] as number) - (line["loss/entropy"] as number), 6);
  expect(some[0]?.["loss/entropy"]).toBe(none[0]?.["loss/entropy"]);
  expect(some[29]?.["loss/entropy"]).toBeGreaterThan((none[29]?.["loss/entropy"] as number) + 0.1);
});
