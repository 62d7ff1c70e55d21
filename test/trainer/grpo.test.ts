import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { CheckpointError, NumericsError } from "../../src/errors.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";
import { openModel } from "../../src/trainer/assemble.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { type CompletionRecord, readMetrics } from "../../src/trainer/run-folder.ts";
import type { Progress } from "../../src/trainer/training-loop.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const metricsOf = ({ runDir }: { runDir: string }) => readMetrics(path.join(runDir, "metrics.jsonl"));

test("a run reports every step, writes completions, evaluates, and exports", async () => {
  const config = tinyConfig(world, "whole", {
    trainer: { questionsPerStep: 3, steps: 3, evalEvery: 2, evalLimit: 5, logCompletions: 2 },
  });
  const seen: Progress[] = [];
  const result = await trainGrpo(config, { onProgress: (progress) => seen.push(progress) });
  expect(result).toEqual({
    runDir: config.runDir,
    step: 3,
    finished: true,
    finalDir: path.join(config.runDir, "final"),
  });
  expect(existsSync(path.join(config.runDir, "final", "model.safetensors"))).toBe(true);
  expect(seen.map(({ step, steps }) => `${step}/${steps}`)).toEqual(["1/3", "2/3", "3/3"]);

  const lines = metricsOf(config);
  expect(lines.map(({ step }) => step)).toEqual([0, 1, 2, 3]);
  expect(lines.map((line) => "eval/easy/accuracy" in line)).toEqual([true, false, true, true]);
  expect(Object.keys(lines[1] ?? {})).toEqual(
    expect.arrayContaining(
      (
        "reward/mean reward/std reward/e reward/zero_std_frac loss/policy loss/kl loss/entropy loss/total grad/norm " +
        "optimizer/learning_rate rollout/length_mean rollout/truncated_frac rollout/tokens_per_s rollout/logprob_gap_mean " +
        "rollout/logprob_gap_max rollout/entropy rollout/occupancy data/bad_samples time/data_s time/rollout_s time/reward_s time/reference_s time/update_s " +
        "time/step_s memory/live_tensors memory/peak_gib"
      ).split(" "),
    ),
  );
  for (const line of lines.slice(1)) {
    // One engine samples and trains: what the sampler said of its tokens is what the trainer says.
    expect(line["rollout/logprob_gap_max"]).toBeLessThan(1e-4);
    expect(line["memory/live_tensors"]).toBe(lines[1]?.["memory/live_tensors"]);
  }
  // Before the first update policy and reference are one.
  expect(lines[1]?.["loss/kl"]).toBeLessThan(1e-9);
  expect(lines[3]?.["loss/kl"]).toBeGreaterThan(1e-9);

  const completions = readFileSync(path.join(config.runDir, "completions.jsonl"), "utf8").trim().split("\n");
  expect(completions).toHaveLength(3 * 2);
  const first = JSON.parse(completions[0] as string);
  expect(first).toMatchObject({ step: 1, solution: expect.stringMatching(/^<answer>[A-D]\.<\/answer>$/) });
  for (const key of ["completions", "rewards", "advantages"]) expect(first[key]).toHaveLength(4);
});

test.each([
  ["", {}],
  [" with two updates a batch", { iterations: 2 }],
  [" with token weights, no reference", { lossAggregation: "token", klCoef: 0 }],
])("a resumed run%s makes the same losses and weights, bit for bit, as one that never stopped", async (name, knobs) => {
  const trainer = { questionsPerStep: 3, steps: 5, saveEvery: 2, keepLast: 9, ...knobs };
  const straight = tinyConfig(world, `straight${name}`, { trainer });
  await trainGrpo(straight);
  const resumed = tinyConfig(world, `resumed${name}`, { trainer });
  cpSync(straight.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-4", "checkpoint-5", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  expect(await trainGrpo(resumed, { resume: true })).toMatchObject({ step: 5, finished: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(straight).map(deterministic));
  for (const file of ["final/model.safetensors", "checkpoint-5/optimizer.safetensors", "completions.jsonl"]) {
    const [a, b] = [straight, resumed].map(({ runDir }) => readFileSync(path.join(runDir, file)));
    expect(a?.equals(b as Buffer), file).toBe(true);
  }
});

test("bfloat16 weights with their low bits resume bit for bit too", async () => {
  const half = (name: string): Config => ({
    ...tinyConfig(world, name, { trainer: { questionsPerStep: 2, steps: 3, saveEvery: 1, keepLast: 9 } }),
    dtype: "bfloat16",
  });
  const straight = half("straight half");
  await trainGrpo(straight);
  const resumed = half("resumed half");
  cpSync(straight.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-2", "checkpoint-3", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(straight).map(deterministic));
  for (const file of ["final/model.safetensors", "checkpoint-3/optimizer.safetensors"]) {
    const [a, b] = [straight, resumed].map(({ runDir }) => readFileSync(path.join(runDir, file)));
    expect(a?.equals(b as Buffer), file).toBe(true);
  }
});

test("a question that comes again is answered with new draws, also by a policy that has not moved", async () => {
  const config = tinyConfig(world, "again", {
    data: { train: [{ file: world.questions, format: "generic", limit: 1 }], workers: 1, cacheGib: 0 },
    trainer: { questionsPerStep: 1, steps: 2 },
    optimizer: { learningRate: 1e-30 },
  });
  await trainGrpo(config);
  const lines = readFileSync(path.join(config.runDir, "completions.jsonl"), "utf8").trim().split("\n");
  const [first, second] = lines.map((line) => JSON.parse(line)) as [CompletionRecord, CompletionRecord];
  expect(second.sample_id).toBe(first.sample_id);
  for (const [i, text] of first.completions.entries()) expect(second.completions[i]).not.toBe(text);
});

test("later updates from a batch are measured against the policy before the first, and clipped", async () => {
  const run = async (iterations: number, epsilon: number) => {
    const config = tinyConfig(world, `iterations ${iterations} ${epsilon}`, {
      rollout: { groupSize: 8, maxNewTokens: 12 },
      trainer: { questionsPerStep: 4, steps: 2, klCoef: 0, iterations, epsLow: epsilon, epsHigh: epsilon },
      optimizer: { learningRate: 5e-3, schedule: "linear" },
    });
    await trainGrpo(config);
    const [first] = metricsOf(config);
    return first as Record<string, number>;
  };
  const clipped = (line: Record<string, number>) => [line["loss/clip_low_frac"], line["loss/clip_high_frac"]];
  const once = await run(1, 0.2);
  expect(once["loss/policy"]).toBeCloseTo(0, 6); // -mean(A), whatever was learnt
  expect(clipped(once)).toEqual([0, 0]);
  // The same batch again: the surrogate has grown, since the policy moved towards what earned more.
  const twice = await run(2, 0.2);
  expect(twice["reward/mean"]).toBe(once["reward/mean"]);
  expect(twice["loss/policy"]).toBeLessThan(-1e-3);
  const thrice = await run(3, 1e-3);
  for (const share of clipped(thrice)) expect(share).toBeGreaterThan(0.05);
  // The rate falls with every update, over as many as the whole run makes.
  const rates = [once, twice, thrice].map((line) => line["optimizer/learning_rate"] as number);
  for (const [i, share] of [1, 3 / 4, 4 / 6].entries()) expect(rates[i]).toBeCloseTo(5e-3 * share, 9);
});

test("recomputed layers make the same run bit for bit; a frozen vision tower stays as it was", async () => {
  const run = async (name: string, knobs: object) => {
    const config = tinyConfig(world, name, {
      model: { path: world.model, init: "random", ...knobs },
      trainer: { questionsPerStep: 2, steps: 2 },
      optimizer: { learningRate: 1e-3, weightDecay: 0.1 },
    });
    await trainGrpo(config);
    using weights = new SafetensorsFile(path.join(config.runDir, "final/model.safetensors"));
    using state = new SafetensorsFile(path.join(config.runDir, "checkpoint-2/optimizer.safetensors"));
    const values = scope(() => weights.names().map((tensor) => [tensor, weights.tensor(tensor).toNumbers()] as const));
    return { lines: metricsOf(config).map(deterministic), weights: new Map(values), state: state.names(), config };
  };
  const kept = await run("kept", { recompute: "none" });
  const recomputed = await run("recomputed", { recompute: "layer" });
  expect(recomputed.lines).toEqual(kept.lines);
  expect(recomputed.weights).toEqual(kept.weights);

  const frozen = await run("frozen", { freezeVision: true });
  expect(frozen.state.filter((name) => name.startsWith("visual."))).toEqual([]);
  using start = openModel(kept.config);
  for (const { parts, tensor } of start.parameters) {
    if (parts.length > 1) continue;
    const before = tensor.toNumbers();
    const isTower = parts[0]?.name.startsWith("visual.");
    const unmoved = (values: number[] | undefined) => values?.every((value, i) => value === before[i]);
    expect(unmoved(frozen.weights.get(parts[0]?.name as string)), parts[0]?.name).toBe(isTower);
    expect(unmoved(kept.weights.get(parts[0]?.name as string)), parts[0]?.name).toBe(false);
  }
});

test("a training record without a gold answer is refused before a folder is touched: accuracy would be 0 for ever", async () => {
  const file = path.join(world.folder, "no-answer.jsonl");
  const prompt = [{ role: "user", content: "Which colour?" }];
  writeFileSync(file, `${JSON.stringify({ sample_id: 1, prompt, response: "red, no tags" })}\n`);
  const data = { train: [{ file, format: "seed-bench-r1-sft" }], workers: 1, cacheGib: 0 };
  const config = tinyConfig(world, "no answer", { data, rewards: [{ name: "accuracy" }] });
  await expect(trainGrpo(config)).rejects.toThrow(/no-answer\.jsonl:1 .*has no gold answer/);
  expect(readdirSync(config.runDir)).toEqual([]);
});

test("resuming a finished run changes nothing", async () => {
  const config = tinyConfig(world, "whole", {
    trainer: { questionsPerStep: 3, steps: 3, evalEvery: 2, evalLimit: 5, logCompletions: 2 },
  });
  const before = metricsOf(config);
  expect(await trainGrpo(config, { resume: true })).toMatchObject({ step: 3, finished: true });
  expect(metricsOf(config)).toEqual(before);
});

test("the plain path and the shared prompt make the same trajectory", async () => {
  const runs: Record<string, number>[][] = [];
  for (const sharedPrefix of [true, false]) {
    const config = tinyConfig(world, `shared ${sharedPrefix}`, {
      trainer: { questionsPerStep: 2, steps: 3, sharedPrefix },
    });
    await trainGrpo(config);
    runs.push(metricsOf(config));
  }
  const [shared, plain] = runs as [Record<string, number>[], Record<string, number>[]];
  for (const [i, line] of shared.entries()) {
    for (const name of ["loss/policy", "loss/kl", "loss/entropy", "grad/norm", "reward/mean"]) {
      expect(plain[i]?.[name], `${name} of step ${i + 1}`).toBeCloseTo(line[name] as number, 4);
    }
  }
});

test("the policy learns to earn more", async () => {
  const config = tinyConfig(world, "learns", {
    rollout: { groupSize: 8, maxNewTokens: 12 },
    trainer: { questionsPerStep: 4, steps: 30, saveEvery: 0, klCoef: 0.01 },
    optimizer: { learningRate: 5e-3, schedule: "constant" },
  });
  await trainGrpo(config);
  const rewards = metricsOf(config).map((line) => line["reward/mean"] as number);
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  expect(mean(rewards.slice(-5))).toBeGreaterThan(1.5 * mean(rewards.slice(0, 5)));
});

test("a loss that is not finite stops the run before the weights are touched and leaves the batch behind", async () => {
  const overflow = fileURLToPath(new URL("rewards/overflow.mjs", import.meta.url));
  const config = tinyConfig(world, "overflow", { rewards: [{ name: "overflow", path: overflow }] });
  const failure = await trainGrpo(config).catch((error) => error);
  expect(failure).toBeInstanceOf(NumericsError);
  expect(failure.message).toMatch(/of step 1 .*numerics-step-1\.json/);
  const dump = JSON.parse(readFileSync(path.join(config.runDir, "numerics-step-1.json"), "utf8"));
  expect(dump.batch).toHaveLength(3);
  expect(dump.batch[0].completion_ids).toHaveLength(4);
  expect(dump.batch[0].advantages).toContain("NaN");
  expect(existsSync(path.join(config.runDir, "checkpoint-1"))).toBe(false);
});

test("a resumed run whose starting weights have changed is refused: they are its reference", async () => {
  const folder = path.join(world.folder, "start");
  const write = (seed: number) => {
    using model = openModel({ ...tinyConfig(world, "start-source"), seed });
    model.save(folder, { copyFrom: world.model });
  };
  write(1);
  const config = tinyConfig(world, "moved", {
    model: { path: folder, init: "pretrained" },
    trainer: { questionsPerStep: 2, steps: 2, saveEvery: 1 },
  });
  await trainGrpo(config);
  rmSync(path.join(config.runDir, "checkpoint-2"), { recursive: true });
  write(2);
  await expect(trainGrpo(config, { resume: true })).rejects.toThrow(CheckpointError);
  write(1);
  expect(await trainGrpo(config, { resume: true })).toMatchObject({ step: 2, finished: true });
});

test("a run does not replace another one unless it is told to", async () => {
  const config = tinyConfig(world, "taken", { trainer: { questionsPerStep: 2, steps: 1 } });
  await trainGrpo(config);
  await expect(trainGrpo(config)).rejects.toThrow(/holds a run already/);
  await trainGrpo(config, { overwrite: true });
  expect(metricsOf(config)).toHaveLength(1);
});

test.each([
  "dr_grpo",
  "dapo",
  "gspo",
  "cispo",
  "sapo",
])("%s over several updates: the plain path and other packs make the same trajectory", async (loss) => {
  const runs: Record<string, number>[][] = [];
  for (const [sharedPrefix, tokensPerPack] of [
    [true, 600],
    [false, 60],
  ]) {
    const config = tinyConfig(world, `${loss} ${sharedPrefix}`, {
      trainer: { loss, iterations: 3, questionsPerStep: 2, steps: 2, saveEvery: 0, sharedPrefix, tokensPerPack },
      optimizer: { learningRate: 3e-3, schedule: "constant", eps: 1e-4 },
    });
    await trainGrpo(config);
    runs.push(metricsOf(config));
  }
  const [shared, plain] = runs as [Record<string, number>[], Record<string, number>[]];
  for (const [i, line] of shared.entries()) {
    for (const name of ["loss/policy", "loss/kl", "grad/norm", "reward/mean", "loss/clip_high_frac"])
      expect(plain[i]?.[name], `${name} of step ${i + 1}`).toBeCloseTo(line[name] as number, 4);
  }
  expect(shared.some((line) => (line["loss/clip_high_frac"] as number) > 0)).toBe(
    ["dr_grpo", "dapo", "gspo"].includes(loss), // cispo lets ratios be 5, sapo has no bound
  );
});
