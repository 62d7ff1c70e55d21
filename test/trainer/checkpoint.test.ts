import {
  appendFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CheckpointError } from "../../src/errors.ts";
import { readCheckpoint } from "../../src/trainer/checkpoint.ts";
import { latestCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
let trained: string;

beforeAll(async () => {
  world = await makeTinyWorld();
  const config = tinyConfig(world, "trained", {
    trainer: { steps: 3, saveEvery: 1, keepLast: 2, questionsPerStep: 2 },
  });
  trained = (await trainSft(config)).runDir;
});
afterAll(() => rmSync(world.folder, { recursive: true }));

/** A copy of the run, so that tests may damage it. */
function copyRun(name: string): string {
  const folder = path.join(world.folder, name);
  cpSync(trained, folder, { recursive: true });
  return folder;
}

test("the newest ones are kept, each with a model of its own and a manifest, and nothing half-written is left", () => {
  const names = readdirSync(trained).sort();
  expect(names).toEqual([
    "checkpoint-2",
    "checkpoint-3",
    "completions.jsonl",
    "config.yaml",
    "final",
    "log.jsonl",
    "metrics.jsonl",
  ]);
  const checkpoint = path.join(trained, "checkpoint-3");
  expect(readdirSync(checkpoint).sort()).toEqual(["manifest.json", "model", "optimizer.safetensors", "state.json"]);
  expect(readdirSync(path.join(checkpoint, "model"))).toEqual(
    expect.arrayContaining(["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]),
  );
  const state = readCheckpoint(checkpoint, "sft");
  expect(state).toMatchObject({ step: 3, updates: 3, badSamples: 0 });
  expect(state.config.seed).toBe(7);
  expect(latestCheckpoint(trained)).toBe(checkpoint);
  expect(() => readCheckpoint(checkpoint, "grpo")).toThrow(/belongs to a run of sft/);
});

test("what a checkpoint took stands in the metrics of the steps after it", () => {
  const lines = readMetrics(path.join(trained, "metrics.jsonl"));
  const stepsWith = (name: string) => lines.filter((line) => name in line).map(({ step }) => step);
  expect(stepsWith("time/checkpoint_s")).toEqual([2, 3]);
  const written = lines.map((line) => line["time/checkpoint_write_s"]).filter((seconds) => seconds !== undefined);
  expect(written.every((seconds) => seconds > 0)).toBe(true); // where a step is over before the writing, its line comes later or not at all
});

test("the exported model is the last checkpoint's", () => {
  const weights = (folder: string) => readFileSync(path.join(trained, folder, "model.safetensors"));
  expect(weights("final").equals(weights("checkpoint-3/model"))).toBe(true);
});

test.each([
  ["without a manifest", (folder: string) => rmSync(path.join(folder, "manifest.json"))],
  ["with a file missing", (folder: string) => rmSync(path.join(folder, "optimizer.safetensors"))],
  ["with a file cut off", (folder: string) => truncateSync(path.join(folder, "optimizer.safetensors"), 100)],
])("a checkpoint %s is passed over for the one before", (name, damage) => {
  const run = copyRun(`partial ${name}`);
  damage(path.join(run, "checkpoint-3"));
  expect(latestCheckpoint(run)).toBe(path.join(run, "checkpoint-2"));
  expect(() => readCheckpoint(path.join(run, "checkpoint-3"), "sft")).toThrow(CheckpointError);
});

test.each([
  "model/model.safetensors",
  "optimizer.safetensors",
  "state.json",
])("a flipped bit in %s is found", (name) => {
  const run = copyRun(`flipped ${path.basename(name)}`);
  const file = path.join(run, "checkpoint-3", name);
  const bytes = readFileSync(file);
  bytes.writeUInt8(bytes.readUInt8(bytes.length - 40) ^ 1, bytes.length - 40);
  writeFileSync(file, bytes);
  expect(latestCheckpoint(run)).toBe(path.join(run, "checkpoint-3"));
  expect(() => readCheckpoint(path.join(run, "checkpoint-3"), "sft")).toThrow(/damaged.*delete the checkpoint/);
});

test("ranks look at a share of the files each, and what one finds is the verdict of all", () => {
  const run = copyRun("shared out");
  const checkpoint = path.join(run, "checkpoint-3");
  const readAs = (rank: number, world: number, gather: (own: unknown) => unknown[]) =>
    readCheckpoint(checkpoint, "sft", { rank, world, gather: gather as <T>(own: T) => T[] });
  const findings = (world: number) =>
    Array.from({ length: world }, (_, rank) => {
      let found: unknown;
      readAs(rank, world, (own) => {
        found = own;
        return [null];
      });
      return found;
    });
  expect(findings(3)).toEqual([null, null, null]);
  const files = ["model/model.safetensors", "model/tokenizer.json", "optimizer.safetensors"];
  for (const name of files) appendFileSync(path.join(checkpoint, name), "x");
  for (const world of [1, 2, 3, 50]) {
    const all = findings(world);
    const damaged = all.filter((one) => one !== null);
    expect(damaged.length).toBeGreaterThanOrEqual(Math.min(world, 2)); // the two largest are different ranks'
    if (world === 50) expect(damaged).toHaveLength(files.length); // a file at most each
    for (let rank = 0; rank < world; rank++) expect(() => readAs(rank, world, () => all)).toThrow(/is damaged/);
  }
});

test("what a killed process left under the hidden name is no checkpoint and is removed by the next save", async () => {
  const run = copyRun("hidden");
  for (const step of [1, 4, 7]) {
    const hidden = path.join(run, `.checkpoint-${step}.tmp`);
    mkdirSync(hidden);
    appendFileSync(path.join(hidden, "state.json"), "{");
  }
  expect(latestCheckpoint(run)).toBe(path.join(run, "checkpoint-3"));
  const config = tinyConfig(world, "hidden", { trainer: { steps: 4, saveEvery: 1, keepLast: 1, questionsPerStep: 2 } });
  await trainSft(config, { resume: true });
  expect(readdirSync(run).filter((name) => name.includes("checkpoint"))).toEqual(["checkpoint-4"]);
});

test("a damaged checkpoint does not count among those that are kept", async () => {
  const run = copyRun("kept");
  rmSync(path.join(run, "checkpoint-3", "manifest.json"));
  const config = tinyConfig(world, "kept", { trainer: { steps: 4, saveEvery: 2, keepLast: 2, questionsPerStep: 2 } });
  await trainSft(config, { resume: true });
  expect(readdirSync(run)).toEqual(expect.arrayContaining(["checkpoint-2", "checkpoint-4"]));
});

test("no checkpoints: nothing to resume from", () => {
  expect(latestCheckpoint(path.join(world.folder, "nowhere"))).toBeUndefined();
});
