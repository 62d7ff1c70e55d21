import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import { duration, Progress, summarize } from "../../src/cli/progress.ts";
import { logToRunFolder } from "../../src/log.ts";
import { capture } from "./capture.ts";

const folders: string[] = [];
afterEach(() => {
  vi.restoreAllMocks();
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

test("without a terminal: a JSON line a step, on standard error and in the run folder", () => {
  const err = capture(process.stderr);
  const folder = mkdtempSync(path.join(tmpdir(), "grove-log-"));
  folders.push(folder);
  const end = logToRunFolder(folder);
  const progress = new Progress({ terminal: false });
  const metrics = {
    "reward/mean": 0.25,
    "loss/kl": 0.0123,
    "rollout/length_mean": 31.5,
    "rollout/tokens_per_s": 1234.4,
  };
  progress.step({ label: "grpo", done: 1, total: 4, etaS: 65, metrics });
  progress.step({ label: "grpo", done: 2, total: 4, etaS: 40, metrics: {} });
  progress.stop();
  end();
  progress.step({ label: "grpo", done: 3, total: 4, etaS: 20 });
  const lines = readFileSync(path.join(folder, "log.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.map(({ msg }) => msg)).toEqual([
    "grpo 1/4  reward 0.250  KL 0.0123  length 31.5  tok/s 1234  ETA 1:05",
    "grpo 2/4  ETA 0:40",
  ]);
  expect(lines[0]).toMatchObject({ grpo: 1, total: 4, "reward/mean": 0.25 });
  expect(err.text.trim().split("\n")).toHaveLength(3);
});

test("without a terminal: many small parts are logged now and then, the last one always", () => {
  const err = capture(process.stderr);
  const progress = new Progress({ terminal: false });
  for (let done = 1; done <= 100; done++) progress.part({ label: "eval L1", done, total: 100 });
  const messages = err.text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).msg as string);
  expect(messages).toHaveLength(2);
  expect(messages[1]).toMatch(/^eval L1 100\/100/);
});

test("numbers for people", () => {
  expect([5, 65, 3671, Number.NaN].map(duration)).toEqual(["0:05", "1:05", "1:01:11", "?"]);
  expect(summarize({ "loss/sft": 2.5, "time/step_s": 1.25 })).toEqual(["loss 2.5000", "s/step 1.3"]);
  expect(summarize({})).toEqual([]);
});

test.each(["make-dataset", "quickstart"])("%s that fails stops the line that it redraws", async (command) => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-failing-"));
  folders.push(folder);
  writeFileSync(path.join(folder, "data"), "no folder");
  const err = capture(process.stderr);
  capture(process.stdout);
  const stop = vi.spyOn(Progress.prototype, "stop");
  const where = command === "quickstart" ? ["--run-dir", folder] : ["--out", path.join(folder, "data")];
  expect(await main([command, ...where])).toBe(1);
  expect(err.text).toContain("error [");
  expect(stop.mock.calls.length).toBeGreaterThan(command === "quickstart" ? 1 : 0); // before the stage's own line, and at the end
});
