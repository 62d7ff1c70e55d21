import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { parse } from "yaml";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { ConfigError } from "../../src/errors.ts";
import { RunFolder, readMetrics } from "../../src/trainer/run-folder.ts";
import { fakeGroup } from "./fakes.ts";

let config: Config;
/** A file that is there everywhere, can be opened, and refuses what is no number, as a full disk refuses all. */
const TAKES_NO_TEXT = "/proc/self/oom_score_adj";
const file = (name: string) => path.join(config.runDir, name);

beforeEach(() => {
  const runDir = mkdtempSync(path.join(tmpdir(), "run-folder-"));
  config = configSchema.parse({ model: { path: "somewhere" }, runDir });
});
afterEach(() => rmSync(config.runDir, { recursive: true }));

test("a run's lines are in the files when the calls return, and config.yaml gives the config back", () => {
  const run = new RunFolder(config);
  run.writeMetrics(1, { "reward/mean": 0.25 });
  const group = { ...fakeGroup([1, 0]), advantages: [0.7, -0.7] };
  run.writeCompletions(1, [group]);
  expect(readMetrics(file("metrics.jsonl"))).toEqual([{ step: 1, "reward/mean": 0.25 }]);
  expect(JSON.parse(readFileSync(file("completions.jsonl"), "utf8"))).toEqual({
    step: 1,
    sample_id: "q1",
    prompt: "question q1",
    solution: "<answer>A.</answer>",
    completions: ["text", "text"],
    tokens: [3, 3],
    rewards: [1, 0],
    reward_breakdown: { accuracy: [1, 0] },
    advantages: [0.7, -0.7],
  });
  expect(configSchema.parse(parse(readFileSync(file("config.yaml"), "utf8")))).toEqual(config);
  run[Symbol.dispose]();
});

test("resuming cuts the lines after the checkpoint and a torn last line", () => {
  const first = new RunFolder(config);
  for (let step = 1; step <= 5; step++) {
    first.writeMetrics(step, { loss: step });
    first.writeCompletions(step, [fakeGroup([1, 0])]);
  }
  first[Symbol.dispose]();
  appendFileSync(file("metrics.jsonl"), '{"step":6,"lo');
  const second = new RunFolder(config, { resumeAt: 3 });
  second.writeMetrics(4, { loss: 40 });
  second[Symbol.dispose]();
  expect(readMetrics(file("metrics.jsonl")).map(({ step, loss }) => [step, loss])).toEqual([
    [1, 1],
    [2, 2],
    [3, 3],
    [4, 40],
  ]);
  expect(readFileSync(file("completions.jsonl"), "utf8").trim().split("\n")).toHaveLength(3);
});

test("resuming cuts lines of any length, and what a power cut has left of later ones", () => {
  const first = new RunFolder(config);
  const group = fakeGroup([1, 0]);
  for (const completion of group.completions) completion.text = "ä".repeat(3 * 2 ** 20); // a line of 12 MiB
  for (let step = 1; step <= 3; step++) {
    first.writeMetrics(step, { loss: step });
    first.writeCompletions(step, [group]);
  }
  first[Symbol.dispose]();
  const whole = readFileSync(file("completions.jsonl"));
  appendFileSync(file("metrics.jsonl"), `${"\0".repeat(100)}\n{"step":4,"loss":4}\n`);
  for (const last of [3, 2, 0]) {
    new RunFolder(config, { resumeAt: last })[Symbol.dispose]();
    expect(readMetrics(file("metrics.jsonl")).map(({ step }) => step)).toEqual([1, 2, 3].slice(0, last));
    expect(readFileSync(file("completions.jsonl")).equals(whole.subarray(0, (whole.length / 3) * last))).toBe(true);
  }
});

test("a folder that holds a run is refused, and emptied of the run alone with overwrite", () => {
  const first = new RunFolder(config);
  first.writeMetrics(1, { loss: 1 });
  first[Symbol.dispose]();
  const halfWritten = [".checkpoint-2.tmp", ".part-2-1", "..part-2-1.tmp", ".final.tmp"];
  for (const folder of ["checkpoint-1", ...halfWritten]) mkdirSync(file(folder));
  writeFileSync(file("notes.txt"), "mine");
  mkdirSync(file("checkpoint-1-good")); // a copy that somebody has put aside
  expect(() => new RunFolder(config)).toThrow(ConfigError);
  new RunFolder(config, { overwrite: true })[Symbol.dispose]();
  expect(readMetrics(file("metrics.jsonl"))).toEqual([]);
  expect(["checkpoint-1", ...halfWritten].filter((folder) => existsSync(file(folder)))).toEqual([]);
  expect(readFileSync(file("notes.txt"), "utf8")).toBe("mine");
  expect(existsSync(file("checkpoint-1-good"))).toBe(true);
});

test("what the system refuses to take of a line is told with the file", () => {
  symlinkSync(TAKES_NO_TEXT, file("completions.jsonl"));
  const run = new RunFolder(config);
  expect(() => run.writeCompletions(1, [fakeGroup([1, 0])])).toThrow(
    /run-folder-\w+\/completions\.jsonl: could not be written: EINVAL/,
  );
  run[Symbol.dispose]();
});

test("a dump keeps what JSON cannot say", () => {
  const run = new RunFolder(config);
  const batch = [
    { prompt: fakeGroup([]).prompt, completions: [Int32Array.of(5, 6), Int32Array.of(7)], rewards: [1, 0] },
  ];
  const dump = JSON.parse(readFileSync(run.dumpBatch(7, { what: "loss", value: Number.NaN }, batch), "utf8"));
  expect(dump).toMatchObject({ step: 7, what: "loss", value: "NaN" });
  expect(dump.batch[0]).toMatchObject({
    sample_id: "q1",
    prompt_ids: [1, 2, 3, 4],
    completion_ids: [[5, 6], [7]],
    rewards: [1, 0],
  });
  run[Symbol.dispose]();
});
