/** Which checkpoints stay because they are good: by the numbers in their manifests, whoever wrote them and however that ended. */

import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { type BestRule, bestRule, whyUnrated } from "../../src/config/best-checkpoints.ts";
import { checkConfig } from "../../src/config/check.ts";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { CheckpointError } from "../../src/errors.ts";
import { readManifest, writeCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

vi.setConfig({ testTimeout: 120_000 });

let folder: string;
let world: TinyWorld;
beforeAll(async () => {
  folder = mkdtempSync(path.join(tmpdir(), "best-"));
  world = await makeTinyWorld();
});
afterAll(() => {
  for (const one of [folder, world.folder]) rmSync(one, { recursive: true });
});

const rule = (more: Partial<BestRule> = {}): BestRule => ({ count: 1, metric: "good", goal: "maximize", ...more });

/** Saves one checkpoint after the other, from step `first` on. */
function save(
  runDir: string,
  values: readonly (number | undefined)[],
  best: BestRule,
  { first = 1, keepLast = 1 } = {},
): void {
  for (const [i, value] of values.entries()) {
    const files = [{ name: "state.json", parts: [Buffer.from(`${first + i}`)] }];
    writeCheckpoint({ runDir, step: first + i, files, keepLast, best, ...(value !== undefined && { value }) });
  }
}

function newRun(name: string): string {
  const runDir = path.join(folder, name);
  mkdirSync(runDir);
  return runDir;
}

/** Steps of the checkpoints that are there, and what `best` points to. */
function present(runDir: string): { steps: number[]; best: string | null; other: string[] } {
  const names = readdirSync(runDir);
  const steps = names.flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []).map(Number);
  const best = names.includes("best") ? readlinkSync(path.join(runDir, "best")) : null;
  const other = names.filter((name) => name !== "best" && !/^checkpoint-\d+$/.test(name));
  return { steps: steps.sort((a, b) => a - b), best, other };
}

test.each([
  ["the best one beside the newest", [1, 5, 3, 2], rule(), [2, 4], 2],
  ["the newest where it is the best", [1, 2, 3], rule(), [3], 3],
  ["of equal ones the newer", [5, 5, 1], rule(), [2, 3], 2],
  ["the least", [3, 1, 2, 4], rule({ goal: "minimize" }), [2, 4], 2],
  ["several", [4, 9, 7, 8, 1, 2], rule({ count: 3 }), [2, 3, 4, 6], 2],
  ["never one that is no number", [1, Number.NaN, Number.POSITIVE_INFINITY, 0], rule(), [1, 4], 1],
  ["never one without a number", [undefined, 1, undefined, undefined], rule({ goal: "minimize" }), [2, 4], 2],
  ["the newest alone while there is no number", [undefined, Number.NaN], rule(), [2], null],
  ["none but the newest", [3, 2, 1], rule({ count: 0 }), [3], null],
] as const)("kept: %s", (name, values, best, steps, link) => {
  const runDir = newRun(name);
  save(runDir, values, best);
  expect(present(runDir)).toEqual({ steps: [...steps], best: link === null ? null : `checkpoint-${link}`, other: [] });
});

test("keepLast counts apart from keepBest", () => {
  const runDir = newRun("both");
  save(runDir, [9, 1, 8, 2, 3, 4], rule({ count: 2 }), { keepLast: 2 });
  expect(present(runDir)).toMatchObject({ steps: [1, 3, 5, 6], best: "checkpoint-1" });
});

test("numbers stand in the manifests, so that a run that goes on knows them; another metric's do not count", () => {
  const runDir = newRun("resumed");
  save(runDir, [2, 7, Number.NaN], rule());
  expect(readManifest(path.join(runDir, "best")).metric).toEqual({ name: "good", value: 7 });
  expect(readManifest(path.join(runDir, "checkpoint-3"))).not.toHaveProperty("metric");
  save(runDir, [6, 5], rule(), { first: 4 });
  expect(present(runDir)).toMatchObject({ steps: [2, 5], best: "checkpoint-2" });
  save(runDir, [0, -1], rule({ metric: "better" }), { first: 6 });
  expect(present(runDir)).toMatchObject({ steps: [6, 7], best: "checkpoint-6" });
});

test("a run that no longer asks for the best leaves no link to what may go", () => {
  const runDir = newRun("given up");
  save(runDir, [7, 1], rule());
  expect(present(runDir).best).toBe("checkpoint-1");
  save(runDir, [1], rule({ count: 0 }), { first: 3 });
  expect(present(runDir)).toEqual({ steps: [3], best: null, other: [] });
});

test("killed between write, link and removal: the next save leaves what would be there without", () => {
  const straight = newRun("straight");
  save(straight, [5, 1, 6], rule());
  const before = newRun("killed");
  save(before, [5, 1], rule());

  // The new checkpoint had its name; link and removal were to follow.
  const written = path.join(folder, "killed after the write");
  cpSync(before, written, { recursive: true, verbatimSymlinks: true });
  cpSync(path.join(straight, "checkpoint-3"), path.join(written, "checkpoint-3"), { recursive: true });
  // The link was half-way to its name, and one old checkpoint had lost its own.
  const linked = path.join(folder, "killed after the link");
  cpSync(written, linked, { recursive: true, verbatimSymlinks: true });
  symlinkSync("checkpoint-3", path.join(linked, ".best.tmp"));
  renameSync(path.join(linked, "checkpoint-2"), path.join(linked, ".checkpoint-2.old"));

  for (const runDir of [written, linked]) {
    expect(readManifest(path.join(runDir, "best")).metric?.value, "a link to a whole checkpoint").toBe(5);
    save(runDir, [2], rule(), { first: 4 });
    expect(present(runDir)).toEqual({ steps: [3, 4], best: "checkpoint-3", other: [] });
  }
});

test("a damaged checkpoint is not among the best", () => {
  const runDir = newRun("damaged");
  save(runDir, [5, 3, 1], rule({ count: 2 }));
  rmSync(path.join(runDir, "checkpoint-1", "state.json"));
  save(runDir, [0], rule({ count: 2 }), { first: 4 });
  expect(present(runDir)).toMatchObject({ best: "checkpoint-2" });
});

test("something else of that name is not replaced", () => {
  const runDir = newRun("in the way");
  mkdirSync(path.join(runDir, "best"));
  expect(() => save(runDir, [5], rule())).toThrow(CheckpointError);
  save(runDir, [5], rule({ count: 0 }), { first: 2 });
  expect(readdirSync(runDir).sort()).toEqual(["best", "checkpoint-2"]);
});

test("ranks: what is kept has every rank's part, and rank 0 alone decides", async () => {
  const runDir = newRun("ranks");
  const script = fileURLToPath(new URL("best-rank.ts", import.meta.url));
  const run = async (world: number, values: (number | null)[], first: number) => {
    for (const { status, stderr } of await spawnRanks(world, script, [runDir, JSON.stringify(values), String(first)]))
      expect([status, stderr]).toEqual([0, ""]);
  };
  const parts = (step: string) => readdirSync(path.join(runDir, step)).filter((name) => name.startsWith("optimizer"));
  await run(4, [1, 8, null, 3], 1);
  expect(present(runDir)).toEqual({ steps: [2, 4], best: "checkpoint-2", other: [] });
  expect(parts("best")).toHaveLength(4);
  await run(2, [8, 2], 5); // as good, and newer
  expect(present(runDir)).toEqual({ steps: [5, 6], best: "checkpoint-5", other: [] });
  expect(parts("best")).toHaveLength(2);
});

test("a training run compares by its evaluations, in steps that have one, also when it goes on", async () => {
  const trainer = { steps: 6, saveEvery: 1, evalEvery: 2, evalLimit: 8, keepLast: 1, keepBest: 2, questionsPerStep: 2 };
  const config = tinyConfig(world, "evaluated", { trainer });
  await trainGrpo({ ...config, trainer: { ...config.trainer, steps: 4 } });
  await trainGrpo(config, { resume: true });
  const rated = readMetrics(path.join(config.runDir, "metrics.jsonl")).flatMap((line) => {
    const value = line["eval/easy/accuracy"];
    return value !== undefined && line.step > 0 ? [{ step: line.step, value }] : [];
  });
  expect(rated.map(({ step }) => step)).toEqual([2, 4, 6]);
  const best = [...rated].sort((a, b) => b.value - a.value || b.step - a.step).slice(0, 2);
  expect(present(config.runDir).best).toBe(`checkpoint-${best[0]?.step}`);
  const kept = new Set([...best.map(({ step }) => step), 6]);
  expect(present(config.runDir).steps).toEqual([...kept].sort((a, b) => a - b));
  for (const { step, value } of best)
    expect(readManifest(path.join(config.runDir, `checkpoint-${step}`)).metric).toEqual({
      name: "eval/easy/accuracy",
      value,
    });
  // The link is a policy like any other, and an overwritten run takes it along.
  expect(existsSync(path.join(config.runDir, "best/model/config.json"))).toBe(true);
  await trainGrpo(
    { ...config, trainer: { ...config.trainer, steps: 1, evalEvery: 0, keepBest: 0 } },
    { overwrite: true },
  );
  expect(present(config.runDir)).toMatchObject({ steps: [1], best: null });
  expect(JSON.parse(readFileSync(path.join(config.runDir, "checkpoint-1/manifest.json"), "utf8"))).toHaveProperty(
    "metric.name",
    "reward/mean",
  );
});

test("an evaluation that a signal cuts short counts once the run goes on, as if nothing had been", async () => {
  const trainer = { steps: 4, saveEvery: 2, evalEvery: 2, evalLimit: 8, keepLast: 1, keepBest: 1, questionsPerStep: 2 };
  const [straight, stopped] = ["evaluated straight", "evaluated late"].map((name) =>
    tinyConfig(world, name, { trainer, eval: { batchSize: 2 } }),
  ) as [Config, Config];
  await trainGrpo(straight);
  let made = 0;
  const stop = {
    onProgress: ({ step }: { step: number }) => {
      made = step;
    },
    onEvalProgress: () => void (made === 2 && process.emit("SIGTERM", "SIGTERM")),
  };
  expect(await trainGrpo(stopped, stop)).toMatchObject({ step: 2, finished: false });
  const lines = (config: Config) => readMetrics(path.join(config.runDir, "metrics.jsonl")).map(deterministic);
  expect(lines(stopped).at(-1)).not.toHaveProperty(["eval/easy/accuracy"]);
  expect(present(stopped.runDir)).toMatchObject({ steps: [2], best: null });
  await trainGrpo(stopped, { resume: true });
  expect(lines(stopped)).toEqual(lines(straight));
  expect(present(stopped.runDir)).toMatchObject({ best: present(straight.runDir).best });
  for (const { runDir } of [straight, stopped]) {
    const { steps } = present(runDir);
    expect(steps.map((step) => readManifest(path.join(runDir, `checkpoint-${step}`)).metric?.name)).toEqual(
      steps.map(() => "eval/easy/accuracy"),
    );
  }
});

const parsed = (trainer: object) =>
  configSchema.parse({
    model: { path: "m" },
    data: { eval: { L1: { file: "a", format: "generic" }, L2: { file: "b", format: "generic" } } },
    trainer,
  });

test.each([
  [{}, "grpo", { count: 0, metric: "reward/mean", goal: "maximize" }],
  [{ keepBest: 3 }, "sft", { count: 3, metric: "loss/sft", goal: "minimize" }],
  [{ evalEvery: 5 }, "grpo", { count: 0, metric: "eval/L1/accuracy", goal: "maximize" }],
  [{ bestMetric: "reward/std", bestGoal: "minimize" }, "grpo", { count: 0, metric: "reward/std", goal: "minimize" }],
] as const)("what is compared by %j of %s", (trainer, stage, expected) => {
  expect(bestRule(parsed(trainer), stage)).toEqual(expected);
});

test.each([
  [{ keepBest: 1, bestMetric: "eval/L2/accuracy" }, /needs trainer.evalEvery/],
  [{ keepBest: 1, bestMetric: "eval/L9/accuracy", evalEvery: 1 }, /L9 is not a set of data.eval, which has L1, L2/],
])("refused: %j", (trainer, problem) => {
  const problems = checkConfig(parsed(trainer));
  expect(problems.filter(({ knob }) => knob === "trainer.bestMetric").map((one) => one.problem)).toEqual([
    expect.stringMatching(problem),
  ]);
});

test("a checkpoint without the metric: what is in its place", () => {
  const metrics = { "reward/mean": 0.5, "loss/kl": Number.NaN };
  expect(whyUnrated("reward/maen", metrics)).toMatch(/did you mean reward\/mean\?$/);
  expect(whyUnrated("loss/kl", metrics)).toBe("it is not finite");
  expect(whyUnrated("something else", metrics)).toBe("its step has reward/mean, loss/kl");
  expect(whyUnrated("eval/L1/accuracy", metrics)).toMatch(/^the step was not evaluated/);
  expect(whyUnrated("eval/L1/acuracy", { ...metrics, "eval/L1/accuracy": 1 })).toMatch(/mean eval\/L1\/accuracy\?$/);
});
