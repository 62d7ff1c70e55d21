/** A sweep and an ablation of real, tiny trainings, from the command line to the page. */

import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import YAML from "yaml";
import { main } from "../../src/cli/main.ts";
import { dumpConfig } from "../../src/config/load.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { capture } from "../cli/capture.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

let world: TinyWorld;
const inside = (...parts: string[]) => path.join(world.folder, ...parts);
beforeAll(async () => {
  world = await makeTinyWorld();
  writeFileSync(
    inside("base.yaml"),
    dumpConfig(tinyConfig(world, "base", { trainer: { questionsPerStep: 3, steps: 2 } })),
  );
});
afterAll(() => rmSync(world.folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());

const common = { config: "", seeds: [1], set: { "trainer.steps": 2 } };

function write(name: string, spec: object): string {
  const file = inside(`${name}.yaml`);
  writeFileSync(file, YAML.stringify({ ...common, config: inside("base.yaml"), runDir: inside(name), ...spec }));
  return file;
}

test("a sweep of GRPO runs on the CPU, two at a time; its best config is one that runs", async () => {
  const file = write("sweep", {
    objective: { metric: "reward/mean", window: 2 },
    space: { "trainer.klCoef": [0, 0.1] },
    search: "grid",
    parallel: 2,
  });
  const out = capture(process.stdout);
  expect(await main(["sweep", "--config", file])).toBe(0);
  expect(out.text).toMatch(/\[2\/2\] trial \d: finished/);
  const results = JSON.parse(readFileSync(inside("sweep", "results.json"), "utf8"));
  expect(results.trials.map(({ status }: { status: string }) => status)).toEqual(["finished", "finished"]);
  for (const trial of ["trial-000", "trial-001"]) {
    const lines = readMetrics(inside("sweep", trial, "seed-1", "metrics.jsonl"));
    expect(lines.map(({ step }) => step)).toEqual([1, 2]);
    const mean = ((lines[0]?.["reward/mean"] as number) + (lines[1]?.["reward/mean"] as number)) / 2;
    expect(results.trials[Number(trial.at(-1))].value).toBeCloseTo(mean, 12);
    expect(existsSync(inside("sweep", trial, "seed-1", "final"))).toBe(false);
  }
  expect(await main(["grpo", "--dry-run", "--config", inside("sweep", "best.yaml")])).toBe(0);
});

test("a sweep that a signal stops says so, and its status does", async () => {
  const space = { "trainer.klCoef": [0, 0.1] };
  const file = write("stopped", { objective: { metric: "reward/mean" }, space, search: "grid" });
  const [out, err] = [capture(process.stdout), capture(process.stderr)];
  const before = process.listeners("SIGTERM");
  const status = main(["sweep", "--config", file]);
  const ours = () => process.listeners("SIGTERM").filter((listener) => !before.includes(listener));
  await vi.waitFor(() => expect(ours()).toHaveLength(1));
  ours()[0]?.("SIGTERM");
  expect(await status).toBe(143);
  expect(out.text).toMatch(/^\nno trial has ended\n/);
  expect(err.text).toBe("stopped; the same command goes on\n");
});

test("an ablation trains, evaluates, and pairs answers by question", async () => {
  const variants = { trained: { command: "sft" }, start: { command: "none" } };
  const file = write("ablation", { variants, base: "start", metrics: ["loss/sft"], evaluate: true });
  const out = capture(process.stdout);
  expect(await main(["ablation", "--config", file])).toBe(0);
  expect(out.text).toContain("accuracy easy");
  const { tables, runs } = JSON.parse(readFileSync(inside("ablation", "results.json"), "utf8"));
  expect(runs.every(({ status }: { status: string }) => status === "finished")).toBe(true);
  expect(tables[0].rows[0].against.questions.n).toBe(24);
  expect(tables[1].rows[0].variant).toBe("trained");
});
