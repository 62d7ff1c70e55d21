/** Groups that teach nothing are left out, others are asked in their place, and penalties change advantages but no reward. */

import { cpSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { configSchema } from "../../src/config/schema.ts";
import { otherIndices } from "../../src/data/order.ts";
import { NumericsError } from "../../src/errors.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { overlongPenalty, punishDistance } from "../../src/trainer/penalties.ts";
import { type CompletionRecord, readMetrics } from "../../src/trainer/run-folder.ts";
import { fakeGroup } from "./fakes.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const MANY_E = fileURLToPath(new URL("rewards/many-e.mjs", import.meta.url));
const configOf = (name: string, trainer: object, more: object = {}): Config =>
  tinyConfig(world, name, {
    rewards: [{ name: "many", path: MANY_E }],
    trainer: { questionsPerStep: 4, steps: 5, logCompletions: 99, ...trainer },
    ...more,
  });
const metricsOf = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl"));
const recordsOf = ({ runDir }: Config): CompletionRecord[] =>
  readFileSync(path.join(runDir, "completions.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
const isAlike = ({ rewards }: CompletionRecord) => rewards.every((reward) => reward === rewards[0]);

test("groups whose rewards are all alike have no part in the loss, nor in what its mean is taken over", async () => {
  const config = configOf("filtered", { filterUniform: true, klCoef: 0 });
  await trainGrpo(config);
  const lines = metricsOf(config);
  const records = recordsOf(config);
  for (const line of lines) {
    const own = records.filter(({ step }) => step === line.step);
    expect(own).toHaveLength(4);
    expect(line["data/left_out"]).toBe(own.filter(isAlike).length);
    expect(line["reward/zero_std_frac"]).toBe(own.filter(isAlike).length / 4);
    for (const record of own) expect(record.advantages).toHaveLength(isAlike(record) ? 0 : 4);
    expect("loss/total" in line).toBe(own.some((record) => !isAlike(record)));
  }
  expect(records.some(isAlike) && records.some((record) => !isAlike(record))).toBe(true);
  // Up to the first step that leaves one out both runs are one. There the others weigh more: their gradient is a mean over fewer.
  const all = configOf("not filtered", { klCoef: 0 });
  await trainGrpo(all);
  const at = lines.findIndex((line) => (line["data/left_out"] as number) > 0);
  const left = lines[at]?.["data/left_out"] as number;
  const norm = metricsOf(all)[at]?.["grad/norm"] as number;
  expect(lines[at]?.["grad/norm"]).toBeCloseTo((norm * 4) / (4 - left), 5);
});

test("a step with nothing to learn from makes no update", async () => {
  const silent = { rewards: [{ name: "e", path: MANY_E, weight: 1 }], rollout: { groupSize: 4, maxNewTokens: 1 } };
  const config = configOf("silent", { filterUniform: true, steps: 2, resampleRounds: 2 }, silent);
  await trainGrpo(config);
  for (const line of metricsOf(config)) {
    expect(line["reward/mean"]).toBe(0); // one token has no two letters e
    expect(line["data/left_out"]).toBe(12); // the step's four, and four more in each round
    expect(Object.keys(line).filter((name) => /^(loss|grad|optimizer)/.test(name))).toEqual([]);
  }
});

test("other questions are asked until the step is full or the rounds are used up; a resumed run asks the same", async () => {
  const trainer = { filterUniform: true, resampleRounds: 2, saveEvery: 2, keepLast: 9, klCoef: 0.05 };
  const config = configOf("resampled", trainer);
  await trainGrpo(config);
  const records = recordsOf(config);
  let asked = 0;
  for (const line of metricsOf(config)) {
    const own = records.filter(({ step }) => step === line.step);
    asked += own.length;
    expect(line["data/questions"]).toBe(own.length);
    expect(new Set(own.map((record) => record.sample_id)).size).toBe(own.length);
    const useful = own.filter((record) => !isAlike(record)).length;
    expect(useful).toBeLessThanOrEqual(4);
    if ((line["data/resample_rounds"] as number) < 2) expect(useful).toBe(4);
  }
  expect(asked).toBeGreaterThan(5 * 4);

  const resumed = configOf("resampled again", trainer);
  cpSync(config.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-4", "checkpoint-5", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(config).map(deterministic));
  expect(recordsOf(resumed)).toEqual(records);
});

test("other indices are a function of their keys, never one that is taken, and no more than there are", () => {
  const taken = new Set([1, 2, 3]);
  const found = otherIndices(10, 4, taken, 7, "resample", 0, 1);
  expect(otherIndices(10, 4, taken, 7, "resample", 0, 1)).toEqual(found);
  expect(otherIndices(10, 4, taken, 7, "resample", 0, 2)).not.toEqual(found);
  expect(new Set(found).size).toBe(4);
  expect(found.some((index) => taken.has(index))).toBe(false);
  expect(otherIndices(10, 99, taken, 1).sort()).toEqual([0, 4, 5, 6, 7, 8, 9]);
  expect(otherIndices(3, 2, new Set([0, 1, 2]), 1)).toEqual([]);
});

test.each([
  [50, 0],
  [80, 0],
  [90, 0.5],
  [100, 1],
  [110, 1],
])("TRL tests/test_rewards.py: soft overlong, 100 at most and 20 of them soft: %i tokens cost %f", (length, cost) => {
  expect(overlongPenalty(length, 100, 20)).toBe(cost);
});

test("a penalty for length lowers advantages, not rewards; truncated completions can be left out", async () => {
  const soft = configOf("soft", { overlongTokens: 6, steps: 2 });
  await trainGrpo(soft);
  const plain = configOf("no penalty", { steps: 2 });
  await trainGrpo(plain);
  expect(metricsOf(soft)[0]?.["reward/mean"]).toBe(metricsOf(plain)[0]?.["reward/mean"]);
  const [first] = recordsOf(soft);
  const cost = first?.tokens.map((n) => Math.max(0, n - 6) / 6);
  expect(first?.penalties).toEqual({ overlong: cost });
  const left = (first?.rewards ?? []).map((reward, i) => reward - (cost?.[i] as number));
  const mean = left.reduce((sum, r) => sum + r, 0) / 4;
  const std = Math.sqrt(left.reduce((sum, r) => sum + (r - mean) ** 2, 0) / 3);
  for (const [i, reward] of left.entries())
    expect(first?.advantages[i]).toBeCloseTo(std === 0 ? 0 : (reward - mean) / (std + 1e-4), 9);
  expect(metricsOf(soft)[0]?.["reward/penalty_overlong"]).toBeGreaterThan(0);

  const masked = configOf("masked", { maskTruncated: true, steps: 2 });
  await trainGrpo(masked);
  for (const line of metricsOf(masked))
    expect("loss/total" in line).toBe((line["rollout/truncated_frac"] as number) < 1);
});

test("KL in the reward: nothing at first, then what the loss would have charged, and no penalty in the loss", async () => {
  const settings = { trainer: { klCoef: 0.5, steps: 3 }, optimizer: { learningRate: 5e-3, schedule: "constant" } };
  const config = configOf(
    "kl reward",
    { ...settings.trainer, klIn: "reward", klEstimator: "k1" },
    settings.optimizer && { optimizer: settings.optimizer },
  );
  await trainGrpo(config);
  const lines = metricsOf(config);
  expect(lines.map((line) => line["loss/kl"])).toEqual([0, 0, 0]);
  expect(Math.abs(lines[0]?.["reward/penalty_kl"] as number)).toBeLessThan(1e-5); // the policy is its reference
  expect(Math.abs(lines[2]?.["reward/penalty_kl"] as number)).toBeGreaterThan(1e-4);
  expect(lines[2]?.["memory/live_tensors"]).toBe(lines[1]?.["memory/live_tensors"]);
});

test("KL in the reward with beta 0 needs no reference", async () => {
  const config = configOf("kl reward 0", { klCoef: 0, klIn: "reward", steps: 1 });
  await trainGrpo(config);
  expect(Object.keys(metricsOf(config)[0] ?? {})).not.toContain("reward/penalty_kl");
});

test("the penalty of a completion is klCoef times the sum over its own tokens", () => {
  const groups = [fakeGroup([1, 0], "a", [2, 1]), fakeGroup([1, 1], "b", [3, 2])]; // the sampler said -1 of every token
  const { trainer } = configSchema.parse({
    model: { path: "m" },
    trainer: { klIn: "reward", klEstimator: "k1", klCoef: 0.5 },
  });
  punishDistance(groups, [-1.5, -2, -1, -1, -1, -3, 0, -20], trainer);
  expect(groups[0]?.penalties).toEqual({ kl: [0.5 * (0.5 + 1), 0] });
  expect(groups[1]?.penalties).toEqual({ kl: [0.5 * 2, 0.5 * (-1 + 11)] }); // the last is clamped
  const broken = [-1.5, -2, -1, -1, -1, Number.NaN, 0, -20];
  expect(() => punishDistance(groups, broken, trainer)).toThrow(NumericsError); // not a reward that does not apply
  expect(() => punishDistance(groups, broken, trainer)).toThrow(
    /the distance from the reference of a completion of b is NaN/,
  );
});
