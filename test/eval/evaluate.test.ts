import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import type { EvalRecord } from "../../src/eval/answers.ts";
import {
  countAnswers,
  type EvalParts,
  evalMetrics,
  evaluateLevels,
  openQuestions,
  readLevels,
} from "../../src/eval/evaluate.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { applyDevice, openModel, openPipeline, type Pipeline } from "../../src/trainer/assemble.ts";
import type { Prompt, Sample } from "../../src/types.ts";
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

/** An empty folder for answers. */
const folderOf = (name: string): string => mkdtempSync(path.join(world.folder, `${name}-`));
const read = (folder: string): EvalRecord[] =>
  readFileSync(path.join(folder, "answers-easy.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

test("answers every question in the seed's fields, and counts by level and domain", async () => {
  const folder = folderOf("whole");
  const seen: string[] = [];
  const results = await evaluateLevels(levels, parts, {
    folder,
    onProgress: ({ level, done, total }) => void seen.push(`${level} ${done}/${total}`),
  });
  expect(seen).toEqual(["easy 8/24", "easy 16/24", "easy 24/24"]);
  const records = read(folder);
  expect(records).toHaveLength(24);
  expect(Object.keys(records[0] as EvalRecord)).toEqual([
    "sample_id",
    "prompt",
    "problem",
    "solution",
    "response",
    "reward",
    "parts",
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
    const folder = folderOf("batches");
    const other = { ...parts, config: { ...config, seed, eval: { ...config.eval, ...knobs } } };
    await evaluateLevels(levels, other, { folder, limit: 6 });
    return read(folder).map(({ response }) => response);
  };
  expect(await answers({ batchSize: 1 })).toEqual(await answers({ batchSize: 6 }));
  const sampled = { greedy: false, temperature: 1 };
  expect(await answers({ ...sampled, batchSize: 2 })).toEqual(await answers(sampled));
  expect(await answers(sampled, 1)).not.toEqual(await answers(sampled, 2));
});

test("consistency is counted where it is asked for, also of answers that were there before", async () => {
  const folder = folderOf("reasons");
  await evaluateLevels(levels, parts, { folder, limit: 4 });
  const lines = read(folder).map((record, i) => {
    const colour = ["red", "green", "red", "red"][i];
    return JSON.stringify({ ...record, response: `<think>it is ${colour}</think><answer>${"AABC"[i]}</answer>` });
  });
  writeFileSync(path.join(folder, "answers-easy.jsonl"), `${lines.join("\n")}\n`);
  const asked = { folder, limit: 4, consistency: true };
  const results = await evaluateLevels(levels, parts, asked);
  expect(results?.easy?.consistency?.all).toEqual({ consistent: 1, inconsistent: 3, undecided: 0 });
  expect(countAnswers(levels, asked)).toEqual(results);
  const withKnob = { ...parts, config: { ...config, eval: { ...config.eval, consistency: true } } };
  expect(await evaluateLevels(levels, withKnob, { folder, limit: 4 })).toEqual(results);
  expect((await evaluateLevels(levels, parts, { folder, limit: 4 }))?.easy?.consistency).toBeUndefined();
});

test("goes on behind the questions that have a line; a torn line is answered again", async () => {
  const folder = folderOf("resumed");
  const file = path.join(folder, "answers-easy.jsonl");
  await evaluateLevels(levels, parts, { folder, limit: 5 });
  const first = read(folder);
  // What is in the file is taken as it is: a reward that the model did not earn shows that it was not asked again.
  const [changed, ...others] = first as [EvalRecord, ...EvalRecord[]];
  const lines = [{ ...changed, reward: 1, response: "from before" }, ...others].map((record) => JSON.stringify(record));
  writeFileSync(file, `${lines.join("\n")}\n`);
  appendFileSync(file, '{"sample_id":"q5","prom');
  const done: number[] = [];
  const results = await evaluateLevels(levels, parts, {
    folder,
    onProgress: (progress) => void done.push(progress.done),
  });
  expect(done).toEqual([13, 21, 24]);
  const records = read(folder);
  expect(records.map(({ sample_id }) => sample_id)).toEqual(levels.easy?.map(({ id }) => id));
  expect(records[0]?.response).toBe("from before");
  expect(results?.easy).toMatchObject({ n: 24, correct: records.filter(({ reward }) => reward === 1).length });
});

test("answers to other questions in the file do not count as progress", async () => {
  const folder = folderOf("others");
  await evaluateLevels({ easy: levels.easy?.slice(10, 15) ?? [] }, parts, { folder });
  const seen: string[] = [];
  const results = await evaluateLevels(levels, parts, {
    folder,
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

test("three shares, one of them cut off half-way and asked again, add up to what one process finds", async () => {
  const whole = folderOf("one");
  const expected = await evaluateLevels(levels, parts, { folder: whole });
  const folder = folderOf("three");
  const asked: string[] = [];
  const share = (k: number, stopped?: () => boolean) =>
    evaluateLevels(
      levels,
      { ...parts, config: { ...config, eval: { ...config.eval, batchSize: 3 } } },
      {
        folder,
        shard: { k, of: 3 },
        ...(stopped && { stopped }),
        onProgress: ({ done, total }) => void asked.push(`${k}: ${done}/${total}`),
      },
    );
  let batches = 0;
  expect(await share(2, () => ++batches > 1)).toBeNull();
  appendFileSync(path.join(folder, "answers-easy.shard-2-of-3.jsonl"), '{"sample_id":"q13","pro');
  const [, third] = [await share(1), await share(3), await share(2)];
  expect(third?.easy?.n).toBe(8);
  expect(asked).toEqual(["2: 3/8", "1: 3/8", "1: 6/8", "1: 8/8", "3: 3/8", "3: 6/8", "3: 8/8", "2: 6/8", "2: 8/8"]);
  expect(readdirSync(folder).sort()).toEqual([1, 2, 3].map((k) => `answers-easy.shard-${k}-of-3.jsonl`));
  expect(openQuestions(levels, { folder })).toBe(0);
  expect(countAnswers(levels, { folder })).toEqual(expected);
  expect(readdirSync(folder)).toEqual(["answers-easy.jsonl"]);
  expect(readFileSync(path.join(folder, "answers-easy.jsonl"), "utf8")).toBe(
    readFileSync(path.join(whole, "answers-easy.jsonl"), "utf8"),
  );
});

test("another number of shares, or none, goes on with what the others have answered", async () => {
  const folder = folderOf("regrouped");
  await evaluateLevels(levels, parts, { folder, shard: { k: 1, of: 3 } });
  expect(openQuestions(levels, { folder })).toBe(16);
  expect(openQuestions(levels, { folder, shard: { k: 1, of: 2 } })).toBe(8);
  await evaluateLevels(levels, parts, { folder, shard: { k: 1, of: 2 } });
  const seen: number[] = [];
  await evaluateLevels(levels, parts, { folder, onProgress: ({ done }) => void seen.push(done) });
  expect(seen).toEqual([24]); // 16 were there, 8 in one batch
  expect(read(folder).map(({ sample_id }) => sample_id)).toEqual(levels.easy?.map(({ id }) => id));
  expect(readdirSync(folder)).toEqual(["answers-easy.jsonl"]);
});

/** Correct answers of one question when the model says `text`. */
async function correctOf(
  text: string,
  knobs: { firstLetterReward?: boolean; reward?: "accuracy" | "math"; solution?: string },
) {
  const { firstLetterReward = false, reward = "accuracy", solution } = knobs;
  const rolloutGroups = (prompts: Prompt[]) =>
    prompts.map((prompt) => ({
      prompt,
      completions: [{ text, ids: Int32Array.of(1), logprobs: new Float32Array(1) }],
      rewards: [],
      rewardBreakdown: {},
      advantages: [],
    }));
  const [first] = levels.easy as [Sample];
  const asked = { easy: [solution === undefined ? first : { ...first, id: "other", solution }] };
  const own = { ...config, compat: { ...config.compat, firstLetterReward }, eval: { ...config.eval, reward } };
  const results = await evaluateLevels(asked, { ...parts, config: own, sampler: { rolloutGroups } as never });
  return results?.easy?.correct;
}

test("the letter rule follows compat.firstLetterReward", async () => {
  expect(levels.easy?.[0]?.solution).toBe("<answer>A.</answer>");
  expect(await correctOf("<answer>Above</answer>", { firstLetterReward: true })).toBe(1);
  expect(await correctOf("<answer>Above</answer>", { firstLetterReward: false })).toBe(0);
  expect(await correctOf("<answer>(A)</answer>", { firstLetterReward: true })).toBe(0);
  expect(await correctOf("<answer>(A)</answer>", { firstLetterReward: false })).toBe(1);
});

test("eval.reward: math judges by what an answer means", async () => {
  const half = { solution: "<answer>0.5</answer>" };
  expect(await correctOf("<answer>\\frac{1}{2}</answer>", { ...half, reward: "math" })).toBe(1);
  expect(await correctOf("<answer>\\frac{1}{2}</answer>", half)).toBe(0);
});
