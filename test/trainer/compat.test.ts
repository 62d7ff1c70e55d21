/** Whole small runs with the switches that reproduce the seed, and what a run counts over its sets and sessions. */

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { createRewards } from "../../src/reward/rewards.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { type CompletionRecord, readMetrics } from "../../src/trainer/run-folder.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

vi.mock("../../src/reward/rewards.ts", async (original) => {
  const module = await original<typeof import("../../src/reward/rewards.ts")>();
  return { ...module, createRewards: vi.fn(module.createRewards) };
});

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const metricsOf = ({ runDir }: { runDir: string }) =>
  readMetrics(path.join(runDir, "metrics.jsonl")).map(deterministic);
const completionsOf = ({ runDir }: { runDir: string }) =>
  readFileSync(path.join(runDir, "completions.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as CompletionRecord);

test("a question that occurs twice in one step gets two different groups", async () => {
  const config = tinyConfig(world, "twice", {
    data: { train: [{ file: world.questions, format: "generic", limit: 1 }], workers: 1, cacheGib: 0 },
    trainer: { questionsPerStep: 3, steps: 1, logCompletions: 3 },
  });
  await trainGrpo(config);
  const groups = completionsOf(config).map(({ completions }) => completions);
  expect(groups).toHaveLength(3);
  expect(new Set(groups.flat()).size).toBe(3 * 4);
});

test("unmaskedSecondEos changes the loss of a run in which completions end by the second end token, and nothing that was drawn", async () => {
  // High enough a temperature that either end token comes up within a few steps.
  const run = async (name: string, compat: object) => {
    const config = tinyConfig(world, name, {
      rollout: { groupSize: 8, maxNewTokens: 60 },
      trainer: { questionsPerStep: 6, steps: 1, logCompletions: 6 },
      compat,
    });
    await trainGrpo(config);
    return { completions: completionsOf(config), line: metricsOf(config)[0] as Record<string, number> };
  };
  const plain = await run("masked", {});
  const seed = await run("unmasked", { unmaskedSecondEos: true });
  expect(seed.completions).toEqual(plain.completions);
  expect(seed.line["rollout/length_mean"]).toBe(plain.line["rollout/length_mean"]);
  expect(seed.line["loss/entropy"]).not.toBe(plain.line["loss/entropy"]); // a mean over other tokens
  expect(seed.line["grad/norm"]).not.toBe(plain.line["grad/norm"]);
  for (const value of Object.values(seed.line)) expect(Number.isFinite(value)).toBe(true);
  expect(seed.line["rollout/logprob_gap_max"]).toBeLessThan(1e-4);
});

test("hiddenTopK reaches the sampler, firstLetterReward the reward", async () => {
  const run = async (name: string, compat: object) => {
    const config = tinyConfig(world, name, {
      rewards: [{ name: "accuracy" }],
      trainer: { questionsPerStep: 4, steps: 1, logCompletions: 4 },
      compat,
    });
    await trainGrpo(config);
    return { config, completions: completionsOf(config).flatMap(({ completions }) => completions) };
  };
  const plain = await run("whole vocabulary", {});
  expect(createRewards).toHaveBeenLastCalledWith(plain.config.rewards, { firstLetter: false });
  const seed = await run("fifty", { hiddenTopK: true, firstLetterReward: true });
  expect(createRewards).toHaveBeenLastCalledWith(seed.config.rewards, { firstLetter: true });
  expect([plain, seed].map(({ config }) => config.rollout.topK)).toEqual([0, 50]);
  expect(seed.completions).not.toEqual(plain.completions);
});

test("one count of bad samples a run: training lines, media, evaluation records, and over a resume", async () => {
  const record = { question: "Which colour?", options: ["red", "blue"], answer: "red" };
  const write = (name: string, lines: unknown[]) => {
    const file = path.join(world.folder, name);
    writeFileSync(file, lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join(""));
    return file;
  };
  const train = write("bad-train.jsonl", ["oops", { ...record, image: "gone.png" }, { ...record, image: "red.png" }]);
  const level = write("bad-eval.jsonl", ["oops", { ...record, image: "red.png" }, { ...record, image: "gone.png" }]);
  const config = (name: string, maxBadSamples: number) =>
    tinyConfig(world, name, {
      data: {
        train: [{ file: train, format: "generic" }],
        eval: { easy: { file: level, format: "generic" } },
        ...{ workers: 1, cacheGib: 0, onBadSample: "skip", maxBadSamples },
      },
      trainer: { questionsPerStep: 2, steps: 2, saveEvery: 1, keepLast: 9, evalEvery: 2 },
    });
  const enough = config("enough", 4); // a line and a picture in either file
  expect(await trainGrpo(enough)).toMatchObject({ finished: true });
  await expect(trainGrpo(config("too few", 3))).rejects.toThrow(/4 samples were unusable, data\.maxBadSamples is 3/);
  const resume = () => {
    rmSync(path.join(enough.runDir, "checkpoint-2"), { recursive: true });
    return trainGrpo(enough, { resume: true });
  };
  const warnings = () =>
    readFileSync(path.join(enough.runDir, "log.jsonl"), "utf8").split("other training records").length - 1;
  expect(await resume()).toMatchObject({ finished: true });
  expect(warnings()).toBe(0);
  const blue = { ...record, image: "blue.png" };
  write("bad-train.jsonl", [blue, { ...record, image: "gone.png" }, { ...record, image: "red.png" }]);
  expect(await resume()).toMatchObject({ finished: true }); // none is counted again, none forgotten
  expect(warnings()).toBe(1); // a record more
  const state = JSON.parse(readFileSync(path.join(enough.runDir, "checkpoint-2", "state.json"), "utf8"));
  expect(state.badRecords.sort()).toEqual([`${level}:1`, `${level}:3`, `${train}:1`, `${train}:2`]);
});
