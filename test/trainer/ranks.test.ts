/** A run of several ranks is the run of one, but for rounding. */

import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import type { RankRun } from "./ranks-rank.ts";
import { deterministic, makeTinyWorld, SHARE_OF_E, type TinyWorld, tinyConfig } from "./tiny-run.ts";

const SCRIPT = fileURLToPath(new URL("ranks-rank.ts", import.meta.url));
const STEPS = 10;
vi.setConfig({ testTimeout: 600_000 }); // dozens of processes share the cores
/** What depends on how the questions are spread, not on what is computed. */
const SPREAD = /^(rollout\/occupancy|data\/token_imbalance)$/;

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

async function run(ranks: number, config: Config, stage: RankRun["stage"], resume = false): Promise<void> {
  const file = path.join(world.folder, "run.json");
  writeFileSync(file, JSON.stringify({ stage, config, resume } satisfies RankRun));
  const results = await spawnRanks(ranks, SCRIPT, [file]);
  for (const { status, stderr, stdout } of results) {
    expect(stderr.split("\n").filter((line) => line !== "" && !line.includes("skipped a sample"))).toEqual([]);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ step: STEPS, finished: true });
  }
}

function outcome({ runDir }: Config) {
  const lines = readMetrics(path.join(runDir, "metrics.jsonl")).map(deterministic);
  using file = new SafetensorsFile(path.join(runDir, "final/model.safetensors"));
  const weights = scope(() => file.names().map((name) => [name, file.tensor(name).toNumbers()] as const));
  return { lines, weights: new Map(weights) };
}

/** Numbers equal to `tolerance` of the larger, or of `scale` where they are smaller than that. */
function expectClose(a: number, b: number, scale: number, what: string, tolerance: number): void {
  const off = Math.abs(a - b) / Math.max(Math.abs(a), Math.abs(b), scale, Number.MIN_VALUE);
  expect(off, `${what}: ${a}, ${b}`).toBeLessThan(tolerance);
}

function expectSameRun(config: Config, like: Config, tolerance = 1e-6): void {
  const [one, other] = [outcome(config), outcome(like)];
  expect(one.lines.length).toBe(other.lines.length);
  for (const [i, line] of one.lines.entries()) {
    const expected = other.lines[i] as Record<string, number>;
    const compared = (one: object) => Object.keys(one).filter((name) => !SPREAD.test(name));
    expect(compared(line)).toEqual(compared(expected));
    for (const [name, value] of Object.entries(line)) {
      if (SPREAD.test(name)) continue;
      // Differences of numbers near 1: their rounding is absolute. The norm of the gradient is a number of its own.
      const scale = name === "grad/norm" ? 1e-12 : 1;
      expectClose(value, expected[name] as number, scale, `${name} of step ${i + 1}`, tolerance);
    }
  }
  for (const [name, values] of one.weights) {
    const expected = other.weights.get(name) as number[];
    const size = Math.max(...expected.map(Math.abs));
    for (const [i, value] of values.entries())
      expectClose(value, expected[i] as number, size, `${name}[${i}]`, tolerance);
  }
}

/**
 * AdamW divides a gradient by its own size: where that is nothing but rounding (a key's bias, which softmax does not see) it would take whole
 * steps in a direction that rounding chooses, and no two orders of the same sums agree. An eps above the rounding keeps such elements still.
 */
const optimizer = { learningRate: 1e-3, eps: 1e-4 };

const settings = {
  optimizer,
  rollout: { groupSize: 4, maxNewTokens: 12 },
  trainer: { questionsPerStep: 8, steps: STEPS, saveEvery: 5, keepLast: 9, evalEvery: 5, evalLimit: 7 },
};
const withTrainer = (more: object) => ({ ...settings, trainer: { ...settings.trainer, ...more } });

type Sharding = Partial<Config["distributed"]>;
const sharded = (distributed: Sharding, more: object = settings) => ({ ...more, distributed });
const GRADIENTS = { shardGradients: true };
const REFERENCE = { shardReference: true };
const BOTH = { ...GRADIENTS, ...REFERENCE };
const RUNS: Record<RankRun["stage"], { ranks: number; sharding: Sharding }[]> = {
  grpo: [
    { ranks: 2, sharding: REFERENCE },
    { ranks: 4, sharding: BOTH },
    { ranks: 8, sharding: {} },
  ],
  sft: [
    { ranks: 2, sharding: {} },
    { ranks: 4, sharding: GRADIENTS },
  ],
};
const RESUMED: Record<RankRun["stage"], { from: number; to: number; sharding: Sharding }[]> = {
  grpo: [
    { from: 4, to: 2, sharding: GRADIENTS },
    { from: 4, to: 2, sharding: REFERENCE },
  ],
  sft: [
    { from: 4, to: 2, sharding: {} },
    { from: 1, to: 4, sharding: GRADIENTS },
    { from: 2, to: 1, sharding: GRADIENTS },
  ],
};
const named = (stage: string, ranks: number) => `${stage}-${ranks}`;

test.each([
  "grpo",
  "sft",
] as const)("%s: 1, 2, 4 (grpo: 8) ranks make the same losses, gradient norms and weights, also resumed by another number, whatever is sharded", async (stage) => {
  const one = tinyConfig(world, named(stage, 1), settings);
  await run(1, one, stage);
  for (const { ranks, sharding } of RUNS[stage]) {
    const many = tinyConfig(world, named(stage, ranks), sharded(sharding));
    await run(ranks, many, stage);
    expectSameRun(many, one);
    // One rank writes, and what the others log lies beside it.
    expect(readdirSync(path.join(many.runDir, "ranks"))).toEqual(
      Array.from({ length: ranks - 1 }, (_, i) => `rank-${i + 1}.jsonl`),
    );
    expect(readdirSync(path.join(many.runDir, "checkpoint-10")).sort()).toEqual([
      "manifest.json",
      "model",
      ...Array.from({ length: ranks }, (_, i) => `optimizer-0000${i + 1}-of-0000${ranks}.safetensors`),
      "state.json",
    ]);
    expect(readdirSync(many.runDir).filter((name) => name.startsWith("."))).toEqual([]);
    if (stage === "grpo")
      expect(readFileSync(path.join(many.runDir, "completions.jsonl"), "utf8").split("\n").length).toBe(
        readFileSync(path.join(one.runDir, "completions.jsonl"), "utf8").split("\n").length,
      );
  }

  for (const [i, { from, to, sharding }] of RESUMED[stage].entries()) {
    const resumed = tinyConfig(world, `${named(stage, from)}-resumed-${i}`, sharded(sharding));
    cpSync(path.join(world.folder, named(stage, from)), resumed.runDir, { recursive: true });
    for (const later of ["checkpoint-10", "final"]) rmSync(path.join(resumed.runDir, later), { recursive: true });
    await run(to, resumed, stage, true);
    expectSameRun(resumed, one);
  }
});

test("more ranks than questions, a step with several updates, a frozen tower", async () => {
  const trainer = { questionsPerStep: 3, iterations: 2, evalEvery: 0, lossAggregation: "token" };
  const more = { ...withTrainer(trainer), model: { freezeVision: true } };
  const one = tinyConfig(world, "few-1", more);
  await run(1, one, "grpo");
  const four = tinyConfig(world, "few-4", sharded(BOTH, more));
  await run(4, four, "grpo");
  expectSameRun(four, one);
  expect(existsSync(path.join(four.runDir, "final/model.safetensors"))).toBe(true);
});

test("reward functions of each rank's own process, some of which do not apply, and what they log", async () => {
  const file = path.join(world.folder, "warm.py");
  writeFileSync(
    file,
    `def warm(completions, domain, log_metric, **kwargs):
    lengths = [len(completion[0]["content"]) for completion in completions]
    log_metric("letters", sum(lengths) / len(lengths))
    return [length if d == "warm" else None for length, d in zip(lengths, domain)]
`,
  );
  const more = {
    ...withTrainer({ questionsPerStep: 3, evalEvery: 0 }),
    rewards: [
      { name: "e", path: SHARE_OF_E },
      { name: "warm", python: `${file}:warm`, weight: 0.1 },
    ],
  };
  const one = tinyConfig(world, "python-1", more);
  await run(1, one, "grpo");
  const { lines } = outcome(one);
  expect(lines.some((line) => (line["reward/warm/not_applicable"] as number) > 0)).toBe(true);
  expect(lines.some((line) => (line["reward/warm/letters"] as number) > 0)).toBe(true);
  for (const ranks of [2, 4]) {
    const many = tinyConfig(world, `python-${ranks}`, more);
    await run(ranks, many, "grpo");
    expectSameRun(many, one);
  }
});

test("an adapter with dropout, and parts frozen or with rates of their own", async () => {
  const lora = { rank: 2, alpha: 4, dropout: 0.2, parts: ["language", "vision"] };
  const few = withTrainer({ questionsPerStep: 5, evalEvery: 0 });
  const rates = { ...few.optimizer, partRates: { vision: 1e-4, "language.head": 3e-4 } };
  for (const [name, more, resumes] of [
    ["lora", { ...few, lora }, true],
    ["parts", { ...few, optimizer: rates, trainer: { ...few.trainer, freeze: ["language.embedding"] } }, false],
  ] as const) {
    const one = tinyConfig(world, `${name}-1`, more);
    await run(1, one, "grpo");
    const two = tinyConfig(world, `${name}-2`, sharded(GRADIENTS, more));
    await run(2, two, "grpo");
    expectSameRun(two, one);
    if (!resumes) continue;
    const resumed = tinyConfig(world, `${name}-resumed`, more);
    cpSync(two.runDir, resumed.runDir, { recursive: true });
    for (const later of ["checkpoint-10", "final"]) rmSync(path.join(resumed.runDir, later), { recursive: true });
    await run(1, resumed, "grpo", true);
    expectSameRun(resumed, one);
  }
});

test("other questions in place of groups that teach nothing, statistics of the batch, penalties and a moving reference", async () => {
  const algorithm = {
    ...{ loss: "dapo", iterations: 2, advantage: "reinforce++-baseline", filterUniform: true, resampleRounds: 2 },
    ...{
      klIn: "reward",
      klEstimator: "k1",
      overlongTokens: 3,
      entropyCoef: 0.01,
      referenceEvery: 3,
      referenceDecay: 0.5,
    },
  };
  const more = {
    ...withTrainer({ questionsPerStep: 5, evalEvery: 0, ...algorithm }),
    rewards: [{ name: "many", path: fileURLToPath(new URL("rewards/many-e.mjs", import.meta.url)) }],
  };
  const one = tinyConfig(world, "algorithm-1", more);
  await run(1, one, "grpo");
  const rounds = outcome(one).lines.map((line) => line["data/resample_rounds"] as number);
  expect(Math.max(...rounds)).toBeGreaterThan(0);
  for (const ranks of [2, 3]) {
    const many = tinyConfig(world, `algorithm-${ranks}`, more);
    await run(ranks, many, "grpo");
    expectSameRun(many, one);
  }
  const resumed = tinyConfig(world, "algorithm-3-2", more);
  cpSync(path.join(world.folder, "algorithm-3"), resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-10", "final"]) rmSync(path.join(resumed.runDir, later), { recursive: true });
  await run(2, resumed, "grpo", true);
  expectSameRun(resumed, one);

  // Cut over the ranks, the reference scores every rank's packs together, also those of a rank that has none left.
  const still = { ...more, trainer: { ...more.trainer, referenceEvery: 0, referenceDecay: 0, loss: "gspo" } };
  const alone = tinyConfig(world, "algorithm-still-1", still);
  await run(1, alone, "grpo");
  const cut = tinyConfig(world, "algorithm-still-3", {
    ...still,
    distributed: { shardReference: true, shardGradients: true },
  });
  await run(3, cut, "grpo");
  expectSameRun(cut, alone);
});

test("GRPO-CARE's bonus by an average that moves, whole or cut over the ranks, resumed by other numbers of them", async () => {
  // A policy that answers in tags, so that there is something to be confident of.
  const sft = tinyConfig(world, "care-sft", {
    trainer: { questionsPerStep: 8, steps: 60, saveEvery: 0 },
    optimizer: { learningRate: 3e-3, schedule: "constant" },
  });
  await trainSft(sft);
  const TRAINED = 1e-5; // its logits are larger than those of random weights, and so is their rounding
  const care = { bonus: 0.5, margin: 0.01, cap: 0.95 };
  const more = {
    ...withTrainer({ questionsPerStep: 5, evalEvery: 0, klCoef: 0, care, referenceEvery: 2, referenceDecay: 0.5 }),
    rollout: { groupSize: 4, maxNewTokens: 24 },
    model: { path: path.join(sft.runDir, "final"), init: "pretrained" },
    rewards: [{ name: "accuracy" }],
  };
  const one = tinyConfig(world, "care-1", more);
  await run(1, one, "grpo");
  const rewarded = outcome(one).lines.map((line) => line["care/rewarded_share"] as number);
  expect(Math.max(...rewarded)).toBeGreaterThan(0);
  for (const [ranks, sharding] of [
    [2, REFERENCE],
    [3, BOTH],
    [2, {}],
  ] as const) {
    const many = tinyConfig(world, `care-${ranks}-${Object.keys(sharding).length}`, sharded(sharding, more));
    await run(ranks, many, "grpo");
    expectSameRun(many, one, TRAINED);
    const saved = readdirSync(path.join(many.runDir, "checkpoint-5")).filter((name) => name.startsWith("reference"));
    expect(saved.sort()).toEqual(
      "shardReference" in sharding
        ? Array.from({ length: ranks }, (_, i) => `reference-0000${i + 1}-of-0000${ranks}.safetensors`)
        : ["reference"],
    );
  }
  for (const [from, to, sharding] of [
    ["care-3-2", 2, REFERENCE],
    ["care-2-1", 1, {}],
    ["care-2-0", 3, REFERENCE],
  ] as const) {
    const resumed = tinyConfig(world, `${from}-resumed`, sharded(sharding, more));
    cpSync(path.join(world.folder, from), resumed.runDir, { recursive: true });
    for (const later of ["checkpoint-10", "final"]) rmSync(path.join(resumed.runDir, later), { recursive: true });
    await run(to, resumed, "grpo", true);
    expectSameRun(resumed, one, TRAINED);
  }
});

test.each([
  "grpo",
  "sft",
] as const)("%s: questions of different lengths are balanced by their tokens, and the run is that of one rank", async (stage) => {
  const records = readFileSync(world.questions, "utf8").trim().split("\n");
  await sharp({ create: { width: 56, height: 224, channels: 3, background: "#20a040" } }).toFile(
    path.join(world.folder, "tall.png"),
  );
  const file = path.join(world.folder, "lengths.jsonl");
  const lengths = records.map((line, i) => {
    const record = JSON.parse(line);
    if (i % 5 === 0) record.image = "tall.png";
    if (i % 4 === 1) record.question = "Which colour is it? ".repeat(1 + (i % 3));
    if (i % 7 === 2) record.response = `${"<think> it is what it is </think>".repeat(4)}${record.response}`;
    return JSON.stringify(record);
  });
  writeFileSync(file, lengths.map((line) => `${line}\n`).join(""));
  const more = {
    ...withTrainer({ questionsPerStep: 8, evalEvery: 0 }),
    data: { train: [{ file, format: "generic" }], workers: 1, cacheGib: 0, prefetch: stage === "grpo" ? 1 : 0 },
  };
  const one = tinyConfig(world, `lengths-${stage}-1`, more);
  await run(1, one, stage);
  for (const ranks of [2, 4]) {
    const many = tinyConfig(world, `lengths-${stage}-${ranks}`, sharded(ranks === 4 ? BOTH : {}, more));
    await run(ranks, many, stage);
    expectSameRun(many, one);
    const spread = outcome(many).lines.map((line) => line["data/token_imbalance"] as number);
    expect(spread).toHaveLength(STEPS);
    expect(Math.min(...spread)).toBeGreaterThanOrEqual(1);
    expect(Math.max(...spread), spread.join(" ")).toBeLessThan(1.15);
  }
});

test("questions that cannot be used are left out as one rank leaves them out, also where a rank is left with none", async () => {
  const records = readFileSync(world.questions, "utf8").trim().split("\n");
  const file = path.join(world.folder, "lost.jsonl");
  const lost = records.map((line, i) => (i % 3 === 1 ? line.replace(/"image":"\w+/, '"image":"nowhere') : line));
  writeFileSync(file, lost.map((line) => `${line}\n`).join(""));
  const train = [{ file, format: "generic" }];
  const more = {
    ...withTrainer({ questionsPerStep: 2, evalEvery: 0 }),
    data: { train, workers: 1, cacheGib: 0, onBadSample: "skip", maxBadSamples: 20 },
  };
  const one = tinyConfig(world, "lost-1", more);
  await run(1, one, "grpo");
  const two = tinyConfig(world, "lost-2", sharded(BOTH, more));
  await run(2, two, "grpo");
  expectSameRun(two, one);
  const asked = outcome(one).lines.map((line) => line["data/questions"]);
  expect(asked).toContain(1); // one of two ranks has none then
  expect(asked).toContain(2);
});
