/** The main path in small, with real video files: render, SFT, GRPO from its result, evaluate, go on from a checkpoint. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { renderedCorpus } from "../../src/data/rendered/corpus.ts";
import { type RenderedDataset, renderDataset } from "../../src/data/rendered/make-dataset.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { runPlot } from "../../src/eval/plot.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";

let folder: string;
let dataset: RenderedDataset;
const inside = (...parts: string[]) => path.join(folder, ...parts);

beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), "rendered-"));
  const sizes = {
    trainVideos: 6,
    questionsPerVideo: 2,
    sftVideos: 4,
    sftLateShare: 0.5,
    sftGuessShare: 0,
    sftRecords: 8,
    L1: 4,
    L2: 2,
    L3: 2,
  };
  dataset = await renderDataset(inside("data"), { seed: 3, ...sizes });
  const spec = {
    ...defaults().tinyModel,
    hiddenSize: 64,
    intermediateSize: 128,
    layers: 2,
    visionWidth: 48,
    visionLayers: 1,
  };
  await writeModelFolder(inside("model"), { spec, corpus: renderedCorpus() });
});
afterAll(() => rmSync(folder, { recursive: true }));

function defaults(): Config {
  return configSchema.parse({ model: { path: "unused" } });
}

function config(runDir: string, model: Config["model"], train: Config["data"]["train"], trainer: object): Config {
  const { L1, L3 } = dataset.validation;
  return configSchema.parse({
    seed: 5,
    threads: 1, // tensors this small are slower on several
    dtype: "float32",
    runDir: inside(runDir),
    model,
    data: {
      train,
      eval: { L1: { file: L1, format: "seed-bench-r1" }, L3: { file: L3, format: "seed-bench-r1" } },
      resizedHeight: 56,
      resizedWidth: 56,
      workers: 1,
      cacheDir: inside("frames"),
    },
    rollout: { groupSize: 4, maxNewTokens: 32 },
    rewards: [{ name: "accuracy" }, { name: "format", weight: 0.5 }],
    trainer,
    optimizer: { learningRate: 3e-3, schedule: "constant" },
    eval: { maxNewTokens: 48 },
  });
}

test("SFT on rendered videos, then GRPO from its result, evaluated on the way and resumed", async () => {
  const start = { path: inside("model"), init: "random" as const, freezeVision: false, recompute: "none" as const };
  const records = [{ file: dataset.sft, format: "seed-bench-r1-sft" as const }];
  const sft = await trainSft(config("sft", start, records, { questionsPerStep: 4, steps: 12, saveEvery: 0 }));
  const losses = readMetrics(inside("sft", "metrics.jsonl")).map((line) => line["loss/sft"] as number);
  expect(losses.at(-1)).toBeLessThan((losses[0] as number) * 0.7);

  const trained = { ...start, path: sft.finalDir as string, init: "pretrained" as const };
  const questions = [{ file: dataset.training, format: "seed-bench-r1" as const }];
  const grpo = (steps: number) =>
    config("grpo", trained, questions, { questionsPerStep: 3, steps, saveEvery: 2, evalEvery: 2, evalLimit: 3 });
  await trainGrpo(grpo(4));
  rmSync(inside("grpo", "checkpoint-4"), { recursive: true });
  const result = await trainGrpo(grpo(4), { resume: true });
  expect(existsSync(path.join(result.finalDir as string, "tokenizer.json"))).toBe(true);

  const lines = readMetrics(inside("grpo", "metrics.jsonl"));
  expect(lines.map(({ step }) => step)).toEqual([0, 1, 2, 3, 4]);
  for (const line of lines.slice(1)) {
    expect(line["reward/accuracy"]).toBeGreaterThanOrEqual(0);
    expect(line["reward/format"]).toBeLessThanOrEqual(1);
    expect(line["rollout/logprob_gap_max"]).toBeLessThan(1e-3);
  }
  expect(lines[4]).toMatchObject({ "eval/L1/n": 3, "eval/L3/n": 2 });
  const [first] = readFileSync(inside("grpo", "completions.jsonl"), "utf8").split("\n");
  expect(JSON.parse(first as string).prompt).toContain("<think> </think>");
  expect(runPlot({ grpo: lines }, "GRPO")).toContain("mean reward");
});
