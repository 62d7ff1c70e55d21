import { appendFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { type EvalParts, type EvalRecord, evalMetrics, evaluateLevels, readLevels } from "../../src/eval/evaluate.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { applyDevice, openModel, openPipeline, type Pipeline } from "../../src/trainer/assemble.ts";
import type { Sample } from "../../src/types.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

let world: TinyWorld;
let config: Config;
let model: Qwen2VL;
let pipeline: Pipeline;
let parts: EvalParts;
let levels: Record<string, Sample[]>;

beforeAll(async () => {
  world = await makeTinyWorld();
  config = tinyConfig(world, "eval");
  applyDevice(config);
  model = openModel(config);
  pipeline = await openPipeline(config, model);
  parts = { config, ...pipeline };
  levels = await readLevels(config);
});
afterAll(async () => {
  await pipeline.close();
  model[Symbol.dispose]();
  rmSync(world.folder, { recursive: true });
});

const read = (file: string): EvalRecord[] =>
  readFileSync(file, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

test("answers every question in the seed's fields, and counts by level and domain", async () => {
  const file = path.join(world.folder, "whole.jsonl");
  const seen: string[] = [];
  const results = await evaluateLevels(levels, parts, {
    fileOf: () => file,
    onProgress: ({ level, done, total }) => void seen.push(`${level} ${done}/${total}`),
  });
  expect(seen).toEqual(["easy 8/24", "easy 16/24", "easy 24/24"]);
  const records = read(file);
  expect(records).toHaveLength(24);
  expect(Object.keys(records[0] as EvalRecord)).toEqual([
    "sample_id",
    "prompt",
    "problem",
    "solution",
    "response",
    "reward",
  ]);
  expect(records[0]).toMatchObject({
    sample_id: "q0",
    solution: "<answer>A.</answer>",
    problem: expect.stringContaining("Which colour?"),
  });
  const correct = records.filter(({ reward }) => reward === 1).length;
  expect(results?.easy).toMatchObject({ correct, n: 24, skipped: 0 });
  expect(results?.easy?.parts.domain?.warm?.n).toBe(8);
  expect(results?.easy?.parts.domain?.cold?.n).toBe(16);
  expect(evalMetrics(results!)).toEqual({ "eval/easy/accuracy": correct / 24, "eval/easy/n": 24 });
});

test("greedy answers do not depend on the batch, and sampled ones follow the seed", async () => {
  const answers = async (knobs: Partial<Config["eval"]>, seed = config.seed) => {
    const file = path.join(world.folder, `answers-${JSON.stringify(knobs)}-${seed}.jsonl`);
    const other = { ...parts, config: { ...config, seed, eval: { ...config.eval, ...knobs } } };
    await evaluateLevels(levels, other, { fileOf: () => file, limit: 6 });
    return read(file).map(({ response }) => response);
  };
  expect(await answers({ batchSize: 1 })).toEqual(await answers({ batchSize: 6 }));
  const sampled = { greedy: false, temperature: 1 };
  expect(await answers({ ...sampled, batchSize: 2 })).toEqual(await answers(sampled));
  expect(await answers(sampled, 1)).not.toEqual(await answers(sampled, 2));
});

test("goes on behind the questions that have a line; a torn line is answered again", async () => {
  const file = path.join(world.folder, "resumed.jsonl");
  await evaluateLevels(levels, parts, { fileOf: () => file, limit: 5 });
  const first = read(file);
  // What is in the file is taken as it is: a reward that the model did not earn shows that it was not asked again.
  const [changed, ...others] = first as [EvalRecord, ...EvalRecord[]];
  const lines = [{ ...changed, reward: 1, response: "from before" }, ...others].map((record) => JSON.stringify(record));
  writeFileSync(file, `${lines.join("\n")}\n`);
  appendFileSync(file, '{"sample_id":"q5","prom');
  const done: number[] = [];
  const results = await evaluateLevels(levels, parts, {
    fileOf: () => file,
    onProgress: (progress) => void done.push(progress.done),
  });
  expect(done).toEqual([13, 21, 24]);
  const records = read(file);
  expect(records.map(({ sample_id }) => sample_id)).toEqual(levels.easy?.map(({ id }) => id));
  expect(records[0]?.response).toBe("from before");
  expect(results?.easy).toMatchObject({ n: 24, correct: records.filter(({ reward }) => reward === 1).length });
});

test("answers to other questions in the file do not count as progress", async () => {
  const file = path.join(world.folder, "others.jsonl");
  await evaluateLevels({ easy: levels.easy?.slice(10, 15) ?? [] }, parts, { fileOf: () => file });
  const seen: string[] = [];
  const results = await evaluateLevels(levels, parts, {
    fileOf: () => file,
    limit: 2,
    onProgress: ({ done, total }) => void seen.push(`${done}/${total}`),
  });
  expect(seen).toEqual(["2/2"]);
  expect(results?.easy?.n).toBe(2);
});

test("a level without gold answers is refused when it is read", async () => {
  const file = path.join(world.folder, "unanswered.jsonl");
  const prompt = [{ role: "user", content: "Which colour?" }];
  writeFileSync(file, `${JSON.stringify({ sample_id: 1, prompt, response: "red, no tags" })}\n`);
  const data = { ...config.data, eval: { open: { file, format: "seed-bench-r1-sft" as const } } };
  await expect(readLevels({ ...config, data })).rejects.toThrow(/unanswered\.jsonl:1 .*has no gold answer/);
});

test("closing a pipeline also frees what its sampler holds", async () => {
  const other = await openPipeline(config, model);
  const dispose = vi.spyOn(other.sampler, Symbol.dispose);
  await other.close();
  expect(dispose).toHaveBeenCalledTimes(1);
});

test("ends early when told to", async () => {
  let asked = 0;
  expect(await evaluateLevels(levels, parts, { stopped: () => ++asked > 1 })).toBeNull();
});
