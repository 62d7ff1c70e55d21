/** Training with reward functions of the user's own: Python's give the run that JavaScript's give, and what fails does so in time. */

import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { RewardError } from "../../src/errors.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { deterministic, makeTinyWorld, SHARE_OF_E, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const trainer = { steps: 3, saveEvery: 0, saveFinal: false };

/** Writes a Python file into the world. */
function pythonOf(name: string, source: string): string {
  const file = path.join(world.folder, name);
  writeFileSync(file, source);
  return file;
}

const metricsOf = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl")).map(deterministic);

test("Python's share of e trains as JavaScript's, bit for bit; what it logs is in the run's files", async () => {
  const file = pythonOf(
    "share.py",
    `def share_of_e(completions, log_metric, log_extra, trainer_state, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    log_extra("letters", [len(text) for text in texts])
    return [(text.count("e") + 1) / (len(text) + 1) if text else 0.0 for text in texts]
`,
  );
  const ours = tinyConfig(world, "ours", { trainer });
  await trainGrpo(ours);
  const python = tinyConfig(world, "python", { trainer, rewards: [{ name: "e", python: `${file}:share_of_e` }] });
  await trainGrpo(python);
  const progress = metricsOf(python).map(({ "reward/e/progress": value, ...line }) => ({ value, line }));
  expect(progress.map(({ line }) => line)).toEqual(metricsOf(ours));
  expect(progress.slice(-3).map(({ value }) => value)).toEqual([0, 1 / 3, 2 / 3]);
  for (const text of readFileSync(path.join(python.runDir, "completions.jsonl"), "utf8").trim().split("\n")) {
    const { completions, reward_columns } = JSON.parse(text);
    const letters = completions.map((completion: string) => [...completion].length);
    expect(reward_columns).toEqual({ "e/letters": letters });
  }
});

test("a field that one record has is an argument in every step", async () => {
  const file = pythonOf(
    "rare.py",
    "def rare(completions, rare):\n    return [1.0 if r == 'yes' else 0.5 for r in rare]\n",
  );
  const records = path.join(world.folder, "rare.jsonl");
  const record = { question: "Which colour?", options: ["red", "blue"], answer: "red" };
  const lines = [0, 1, 2].map((i) => JSON.stringify({ id: `r${i}`, ...record, ...(i === 1 && { rare: "yes" }) }));
  writeFileSync(records, `${lines.join("\n")}\n`);
  const config = tinyConfig(world, "rare", {
    data: { train: [{ file: records, format: "generic" }] },
    trainer: { ...trainer, questionsPerStep: 1 },
    rewards: [{ name: "rare", python: `${file}:rare` }],
  });
  await trainGrpo(config);
  const means = metricsOf(config).map((line) => line["reward/mean"] as number);
  expect(means.sort()).toEqual([0.5, 0.5, 1]);
});

test("completions that no function applies to are left out of baselines; failures are counted", async () => {
  const file = pythonOf(
    "partly.py",
    `def partly(completions, domain, **kwargs):
    return [len(c[0]["content"]) if d == "warm" else None for c, d in zip(completions, domain)]

def never(completions, **kwargs):
    raise RuntimeError("never")
`,
  );
  const rewards = [
    { name: "partly", python: `${file}:partly` },
    { name: "never", python: `${file}:never`, onError: "skip" },
  ];
  const config = tinyConfig(world, "partly", { trainer: { ...trainer, logCompletions: 3 }, rewards });
  await trainGrpo(config);
  const lines = metricsOf(config).filter((line) => "reward/partly/errors" in line);
  expect(lines).toHaveLength(3);
  const groups = readFileSync(path.join(config.runDir, "completions.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  for (const line of lines) {
    const own = groups.filter(({ step }) => step === line.step);
    const cold = own.filter(({ rewards }) => rewards.every((reward: number | null) => reward === null));
    expect(line["reward/partly/not_applicable"]).toBe(4 * cold.length);
    expect(line["reward/never/errors"]).toBe(12);
    expect("reward/mean" in line).toBe(cold.length < 3);
    for (const { advantages } of cold) expect(advantages).toEqual([0, 0, 0, 0]);
    expect(Number.isFinite(line["loss/total"])).toBe(true);
  }
});

test("a function that cannot be loaded stops a run before it has a folder, one that fails later names its samples", async () => {
  const file = pythonOf(
    "late.py",
    `def late(completions, trainer_state, **kwargs):
    return [float("inf") if trainer_state.global_step == 1 else 1.0] * len(completions)
`,
  );
  const missing = tinyConfig(world, "missing", { trainer, rewards: [{ name: "late", python: `${file}:lat` }] });
  rmSync(missing.runDir, { recursive: true });
  await expect(trainGrpo(missing)).rejects.toThrow(/has no function lat; did you mean late\?/);
  expect(existsSync(missing.runDir)).toBe(false);
  const config = tinyConfig(world, "late", { trainer, rewards: [{ name: "late", python: `${file}:late` }] });
  const failure = trainGrpo(config);
  await expect(failure).rejects.toThrow(RewardError);
  await expect(failure).rejects.toThrow(
    /^reward "late": .*late: expected a finite number or null for completion 0 \(sample q\d+\), got inf/,
  );
  expect(metricsOf(config).at(-1)?.step).toBe(1);
});

test("a module's run has the counts too", async () => {
  const config = tinyConfig(world, "counts", { trainer: { ...trainer, steps: 1 } });
  expect(config.rewards).toMatchObject([{ name: "e", path: SHARE_OF_E }]);
  await trainGrpo(config);
  expect(metricsOf(config).at(-1)).toMatchObject({ "reward/e/not_applicable": 0, "reward/e/errors": 0 });
});
