/** docs/experiments.md: its files are read by who they are for, its tables name every key, and its recipes call commands that exist. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { parse } from "yaml";
import { cli } from "../src/cli/main.ts";
import { jsonLine } from "../src/cli/train.ts";
import { knobPaths } from "../src/config/schema-tree.ts";
import { ablationSchema, readAblation } from "../src/experiment/ablation-spec.ts";
import { type Halving, rungsOf } from "../src/experiment/halving.ts";
import { commonKeys } from "../src/experiment/spec.ts";
import { readSweep, sweepSchema } from "../src/experiment/sweep-spec.ts";
import { capture } from "./cli/capture.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const page = readFileSync(path.join(root, "docs/experiments.md"), "utf8");
const folder = mkdtempSync(path.join(tmpdir(), "grove-doc-"));
afterAll(() => rmSync(folder, { recursive: true }));

function blocks(language: string): string[] {
  return [...page.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)]
    .filter(([, name]) => name === language)
    .map(([, , text]) => text as string);
}

function fileOf(kind: string): string {
  const text = blocks("yaml").find((one) => one.startsWith(`# A${kind}`)) as string;
  const file = path.join(folder, `${kind.trim().split(" ").at(-1)}.yaml`);
  writeFileSync(file, text);
  return file;
}

test("the example files are in order", () => {
  const sweep = readSweep(fileOf(" sweep"));
  expect(sweep).toMatchObject({ trials: 24, seeds: [1, 2], objective: { metric: "eval/L1/accuracy", window: 10 } });
  const { halving } = sweep;
  const { steps, evalEvery } = sweep.configOf({}).trainer;
  const rungs = rungsOf(halving as Halving, steps as number);
  expect(rungs.filter((rung) => rung % evalEvery !== 0)).toEqual([]); // each rung has a figure of its own
  const ablation = readAblation(fileOf("n ablation"));
  expect(ablation.gpusPerRun).toBe(sweep.gpusPerRun); // both run the config of eight GPUs
  expect(ablation.variants).toEqual(["vanilla", "sft", "grpo", "no-kl", "group-4"]);
  expect(ablation.jobs.find(({ variant, seed }) => variant === "no-kl" && seed === 2)?.config.model.path).toMatch(
    /variant-sft\/seed-2\/final$/,
  );
});

test.each(readdirSync(path.join(root, "configs/sweeps")))("configs/sweeps/%s", (name) => {
  expect(readSweep(path.join("configs/sweeps", name)).trials).toBeGreaterThan(0);
});

test.each(readdirSync(path.join(root, "configs/ablations")))("configs/ablations/%s", (name) => {
  expect(readAblation(path.join("configs/ablations", name)).jobs.length).toBeGreaterThan(0);
});

test("the tables name every key", () => {
  const rows = page.split("\n").filter((line) => line.startsWith("| `"));
  const named = rows.map((row) => /^\| `(\w+)/.exec(row)?.[1]);
  for (const key of Object.keys({ ...commonKeys, ...sweepSchema.shape, ...ablationSchema.shape }))
    expect(named).toContain(key);
});

test("the line of JSON", () => {
  writeFileSync(path.join(folder, "metrics.jsonl"), '{"step":1,"reward/mean":1}\n{"step":2,"reward/mean":2}\n');
  const result = { finished: true, step: 2, runDir: folder, finalDir: null };
  const line = JSON.parse(jsonLine("grpo", { jsonWindow: 10 }, result));
  expect(line).toEqual({
    command: "grpo",
    finished: true,
    step: 2,
    runDir: folder,
    finalDir: null,
    window: 10,
    metrics: { "reward/mean": 1.5 },
  });
  const [documented] = blocks("json");
  expect(Object.keys(JSON.parse(documented as string))).toEqual(Object.keys(line));
});

const python = blocks("python").map(
  (text, i) => [["Optuna", "Weights & Biases", "Ray Tune"][i] as string, text] as const,
);

test("there is a recipe for each tool", () => {
  expect(python).toHaveLength(3);
  for (const [tool, text] of python) {
    expect(page).toContain(`### ${tool}`);
    expect(text).toContain(`import ${{ Optuna: "optuna", "Weights & Biases": "wandb" }[tool] ?? "tune"}`);
  }
  const sweep = blocks("yaml")
    .map((text) => parse(text))
    .find((one) => one.program !== undefined);
  const names = [...(python[1]?.[1] as string).matchAll(/"(\w+)": "[\w.]+"/g)].map(([, name]) => name);
  expect(names).toEqual(Object.keys(sweep.parameters));
});

test.each(python)("%s: Python reads it, and its commands are ours", async (_tool, text) => {
  const { status, stderr } = spawnSync("python3", ["-c", "import ast, sys; ast.parse(sys.stdin.read())"], {
    input: text,
    encoding: "utf8",
  });
  expect(stderr).toBe("");
  expect(status).toBe(0);
  const knobs = [...text.matchAll(/"((?:optimizer|trainer|rollout)\.\w+)"/g)].map(([, knob]) => knob as string);
  expect(knobs.length).toBeGreaterThan(1);
  for (const knob of knobs) expect(knobPaths()).toContain(knob);
  const words = [...text.replaceAll(" run_dir,", ' "run",').matchAll(/command \+?= \[(.*)\]/g)].flatMap(([, list]) =>
    [...(list as string).matchAll(/f?"([^"]*)"/g)].map(([, word]) => word as string),
  );
  expect(words.slice(0, 3)).toEqual(["npm", "run", "--silent"]);
  expect(words.at(-1)).toBe("--json");
  expect(words).toContain("trainer.saveEvery=0"); // no checkpoints of every trial
  capture(process.stdout);
  await cli([words[3] as string, ...words.slice(5), "--set", `${knobs[0]}=0.1`, "--dry-run"]).parseAsync();
});
