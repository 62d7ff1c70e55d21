/** How often the tower runs, for whom, and that what is kept is what it said. */

import { rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { mediaOf, packGroups } from "../../src/model/packed.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { VisionFeatures } from "../../src/trainer/vision-features.ts";
import type { Prompt } from "../../src/types.ts";
import { randomGroup, relativeError, shakenModel, tinyConfig as tinyModelConfig } from "../model/support.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

/** Patches of each run of the tower, by the tower's weights. */
const runs = vi.hoisted(() => [] as { tower: object; patches: number }[]);
vi.mock("../../src/model/qwen2vl/vision.ts", async (original) => {
  const real = await original<typeof import("../../src/model/qwen2vl/vision.ts")>();
  const visionTower: typeof real.visionTower = (batch, weights, ...rest) => {
    runs.push({ tower: weights, patches: batch.pixels.size(0) });
    return real.visionTower(batch, weights, ...rest);
  };
  return { ...real, visionTower };
});

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld(6);
});
afterAll(() => rmSync(world.folder, { recursive: true }));
beforeEach(() => void runs.splice(0));

const PATCHES = 16; // of one picture, 56 x 56
/** Pictures that each tower saw, the busiest first. */
function picturesByTower(): number[] {
  const pictures = new Map<object, number>();
  for (const { tower, patches } of runs) pictures.set(tower, (pictures.get(tower) ?? 0) + patches / PATCHES);
  return [...pictures.values()].sort((a, b) => b - a);
}
const metricsOf = ({ runDir }: { runDir: string }) =>
  readMetrics(path.join(runDir, "metrics.jsonl")).map((line) => deterministic(line as Record<string, number>));
const run = async (name: string, model: object, trainer: object) => {
  const config = tinyConfig(world, name, {
    model: { path: world.model, init: "random", ...model },
    trainer: { questionsPerStep: 3, saveEvery: 10, tokensPerPack: 600, ...trainer },
  });
  await trainGrpo(config);
  return config;
};

test("frozen: one run a question, in the rollout, for policy and reference alike", async () => {
  const once = await run("frozen once", { freezeVision: true }, { steps: 2 }); // 6 questions, each asked once
  expect(picturesByTower()).toEqual([6]);
  for (const line of metricsOf(once).slice(1)) expect(line["rollout/logprob_gap_max"]).toBeLessThan(1e-4);
});

test("frozen: several updates a batch and several epochs need no other", async () => {
  await run("frozen epochs", { freezeVision: true }, { steps: 6, iterations: 2 });
  expect(picturesByTower()).toEqual([6]);
});

test("trained: rollout and update each run it once a question, the reference once a batch", async () => {
  await run("trained once", {}, { steps: 2 });
  expect(picturesByTower()).toEqual([12, 6]);
});

test("trained: the reference says the same of a question in every epoch, and is asked once", async () => {
  await run("trained epochs", {}, { steps: 6, iterations: 2 });
  expect(picturesByTower()).toEqual([3 * 6 * 3, 6]); // a rollout and two updates in each of three epochs
});

test("SFT with a frozen tower: one run a record for all epochs", async () => {
  const config = tinyConfig(world, "sft", {
    model: { path: world.model, init: "random", freezeVision: true },
    trainer: { questionsPerStep: 3, steps: 4, saveEvery: 10, tokensPerPack: 600 },
  });
  await trainSft(config);
  expect(picturesByTower()).toEqual([6]);
});

const config = tinyModelConfig();
const promptOf = (seed: number, line: number, media: object): Prompt => ({
  ...randomGroup(config, seed, { completions: [], ...media }).prompt,
  sample: { id: `${line}`, messages: [], solution: "", fields: {}, source: { file: "f", line } },
});
const prompts = [
  promptOf(1, 1, { videos: [[2, 4, 6]], images: [[1, 2, 4]] }),
  promptOf(2, 2, { images: [[1, 4, 4]] }),
  promptOf(3, 3, { videos: [[1, 4, 4]] }),
];

test("features come in the order asked for, known or not, and within a limit of nothing too", () => {
  using model = shakenModel(config, 31);
  const inputs = mediaOf(prompts);
  const before = liveTensors();
  const expected = scope(() => model.visionFeatures(inputs).toNumbers());
  for (const limit of [0, 2000, 2 ** 20]) {
    using features = new VisionFeatures(model, limit);
    expect(scope(() => features.of(inputs).toNumbers())).toEqual(expected);
    features.know(prompts.slice(0, 2));
    const known = scope(() => features.of(inputs).toNumbers());
    expect(relativeError(known, expected)).toBeLessThan(1e-13); // other numbers of rows in a product, nothing else
    expect(scope(() => features.of(inputs).toNumbers())).toEqual(known);
    scope(() => {
      const packed = packGroups(prompts.map((prompt) => ({ prompt, completions: [Int32Array.of(1)] })));
      using kept = model.pass(packed, { grad: false, visionCache: features.ofPack(packed) });
      using fresh = model.pass(packed, { grad: false });
      expect(relativeError(kept.logprobs.toNumbers(), fresh.logprobs.toNumbers())).toBeLessThan(1e-12);
    });
  }
  expect(liveTensors()).toEqual(before);
});

test("what is longest unused goes first, and a record that is read again is known again", () => {
  using model = shakenModel(config, 32);
  const ask = (features: VisionFeatures, prompt: Prompt | undefined) => {
    const copy = { ...(prompt as Prompt), images: prompt?.images.map((image) => ({ ...image })) ?? [] };
    features.know([copy]);
    scope(() => void features.of(mediaOf([copy])));
    return runs.splice(0).length;
  };
  // 2 * 4 * 6 / 4 + 2, 4 and 4 features of 32 float64 values
  using features = new VisionFeatures(model, 8 * 32 * 20);
  expect(prompts.map((prompt) => ask(features, prompt))).toEqual([1, 1, 1]);
  expect(ask(features, prompts[1])).toBe(0);
  expect(ask(features, prompts[2])).toBe(0);
  expect(ask(features, prompts[0])).toBe(1);
  features.clear();
  expect(ask(features, prompts[0])).toBe(1);
});
