import { spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, beforeEach, expect, test } from "vitest";
import { loadConfig } from "../../src/config/load.ts";
import { propose } from "../../src/experiment/search.ts";
import type { Params } from "../../src/experiment/space.ts";
import { runSweep, type SweepOptions } from "../../src/experiment/sweep.ts";
import { sweepTable, writeSweepResults } from "../../src/experiment/sweep-report.ts";
import { readSweep } from "../../src/experiment/sweep-spec.ts";
import type { Trial } from "../../src/experiment/trials.ts";
import { FAKE, makePlace, slots } from "./helpers.ts";

const place = makePlace();
afterAll(() => rmSync(place.folder, { recursive: true }));
beforeEach(() => rmSync(path.join(place.folder, "starts"), { force: true }));

const run = (file: string, options: Partial<SweepOptions> & { runDir?: string } = {}) => {
  const { runDir, ...rest } = options;
  const signal = new AbortController().signal;
  return runSweep(readSweep(file, { runDir }), { program: FAKE, slots: slots(1), signal, ...rest });
};
/** What must be the same in every repetition. */
const outcome = (trials: readonly Trial[]) =>
  trials.map(({ params, status, value, runs, rungs }) => ({
    params,
    status,
    value,
    rungs,
    steps: runs.map((one) => one.how),
  }));

test("the same seed gives the same trials and outcome, one at a time and two", async () => {
  const tpe = { search: "tpe", tpe: { startup: 3 }, trials: 5, halving: { minSteps: 2, factor: 2 }, seed: 5 };
  const file = place.write("tpe", tpe);
  const first = await run(file);
  const again = await run(file, { runDir: path.join(place.folder, "tpe-again") });
  expect(outcome(again.trials)).toEqual(outcome(first.trials));
  expect(new Set(first.trials.map(({ status }) => status))).toEqual(new Set(["finished", "stopped"]));
  const inTwo = async (name: string) => run(file, { runDir: path.join(place.folder, name), slots: slots(2) });
  expect(outcome((await inTwo("two")).trials)).toEqual(outcome((await inTwo("two-again")).trials));
  const other = await run(place.write("tpe-other", { ...tpe, seed: 6, trials: 1 }));
  expect(other.trials[0]?.params).not.toEqual(first.trials[0]?.params);
});

test("a sweep killed by SIGKILL goes on: nothing that was finished is lost or made again", async () => {
  const changes = { search: "tpe", tpe: { startup: 3 }, trials: 5, seeds: [1, 2], seed: 1 };
  const straight = await run(place.write("straight", changes));
  rmSync(path.join(place.folder, "starts"));
  const file = place.write("killed", changes);
  const script = fileURLToPath(new URL("run-sweep.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script, file], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, FAKE_STEP_MS: "40" },
  });
  const ended = new Promise((resolve) => child.once("exit", (_code, signal) => resolve(signal)));
  for await (const line of createInterface({ input: child.stdout })) if (line === "trial 1") break;
  while (!place.starts().includes("killed/trial-002/seed-1")) await new Promise((resolve) => setTimeout(resolve, 5));
  child.kill("SIGKILL");
  expect(await ended).toBe("SIGKILL");
  const { trials, finished } = await run(file);
  expect(finished).toBe(true);
  expect(outcome(trials)).toEqual(outcome(straight.trials));
  const starts = place.starts();
  const twice = starts.filter((dir, i) => starts.indexOf(dir) !== i);
  expect(new Set(twice)).toEqual(new Set(["killed/trial-002/seed-1"])); // the one that was being made
  expect(new Set(starts).size).toBe(10);
  await run(file);
  expect(place.starts()).toHaveLength(starts.length); // a finished sweep has nothing left to do
});

test("an orderly stop, a torn journal line, then on from there", async () => {
  const file = place.write("stopped", { trials: 4 });
  const stop = new AbortController();
  const stopped = await run(file, { signal: stop.signal, onTrial: ({ trial }) => trial === 1 && stop.abort() });
  expect(stopped.finished).toBe(false);
  const journal = path.join(place.folder, "stopped", "journal.jsonl");
  writeFileSync(journal, `${readFileSync(journal, "utf8")}{"event":"ended","tri`);
  const { trials } = await run(file);
  expect(trials.map(({ status }) => status)).toEqual(["finished", "finished", "finished", "finished"]);
  const starts = place.starts();
  expect(starts.filter((dir) => dir.includes("trial-000"))).toHaveLength(1);
});

test("a grid tries everything once, a failing setting counts as the worst, and its reason is kept", async () => {
  const space = { "optimizer.learningRate": [1e-3, 1], "trainer.klCoef": [0, 0.1] };
  const file = place.write("grid", { space, search: "grid", trials: undefined, seeds: [3, 4] });
  const { trials } = await run(file);
  expect(trials.map(({ params, status }) => [...Object.values(params), status])).toEqual([
    [1e-3, 0, "finished"],
    [1e-3, 0.1, "finished"],
    [1, 0, "failed"],
    [1, 0.1, "failed"],
  ]);
  expect(trials[2]?.runs[0]?.reason).toContain("error [NUMERICS] loss is NaN");
  expect(trials[0]?.value).toBeCloseTo(1 + 0.0035 + 0.01, 10); // the mean of both seeds
  expect(trials[2]?.runs).toHaveLength(1); // no second seed of a setting that fails

  const sweep = readSweep(file);
  const files = writeSweepResults(sweep, trials);
  expect(files.every((one) => existsSync(one))).toBe(true);
  const best = loadConfig({ files: [path.join(place.folder, "grid", "best.yaml")] });
  expect(best).toMatchObject({ optimizer: { learningRate: 1e-3 }, trainer: { klCoef: 0, saveFinal: true } });
  const page = readFileSync(path.join(place.folder, "grid", "report.html"), "utf8");
  for (const { trial } of trials) expect(page).toContain(`<title>trial ${trial}: `);
  expect(page.match(/class="trial"/g)).toHaveLength(trials.length);
  expect(page).not.toMatch(/<script|<link|src=|@import|url\(/); // nothing is fetched
  expect(
    [...page.matchAll(/https?:\/\/[^"\s<]+/g)]
      .map(([url]) => url)
      .filter((url) => url !== "http://www.w3.org/2000/svg"),
  ).toEqual([]);
  expect(sweepTable(sweep, trials).split("\n")).toHaveLength(2 + trials.length);

  await expect(run(place.write("failing", { space, search: "grid", trials: undefined, maxFailed: 1 }))).rejects.toThrow(
    /2 trials have failed, more than maxFailed \(1\)[\s\S]*loss is NaN/,
  );
});

test("runs that failed and were made once more have finished for good", async () => {
  const file = place.write("retried", { trials: 2 });
  const broken = { program: process.execPath, args: ["-e", "process.exit(1)", "--"] };
  const failed = await run(file, { program: broken });
  expect(failed.trials.map(({ status }) => status)).toEqual(["failed", "failed"]);
  const retried = await run(file, { retryFailed: true });
  expect(retried.trials.map(({ status }) => status)).toEqual(["finished", "finished"]);
  expect(outcome((await run(file)).trials)).toEqual(outcome(retried.trials));
  expect(place.starts()).toHaveLength(2);
});

test("settings to try first that lie between a grid's take no place in it, and none comes twice", () => {
  const space = { "optimizer.learningRate": { min: 1e-6, max: 1e-4, scale: "log", points: 3 } };
  const first = (...rates: number[]) => rates.map((rate) => ({ "optimizer.learningRate": rate }));
  const trials = (some: object[]) =>
    readSweep(place.write("first", { space, search: "grid", trials: undefined, first: some })).trials;
  expect(trials(first(1e-6))).toBe(3);
  expect(trials(first(3e-6, 1e-6))).toBe(4);
  expect(() => trials(first(3e-6, 3e-6))).toThrow(/first\.1: the same setting twice/);
});

test("of a grid of many millions as many are tried as asked for, the first in order", () => {
  const space = { "data.maxPixels": { min: 4000, max: 12_000_000 }, "trainer.klCoef": [0, 0.1] };
  const { trials, search } = readSweep(place.write("large", { space, search: "grid", trials: 5 }));
  expect(trials).toBe(5);
  const tried: Params[] = [];
  for (let trial = 0; trial < trials; trial++) tried.push(propose(search, trial, tried, []) as Params);
  const pixels = tried.map((params) => [params["data.maxPixels"], params["trainer.klCoef"]]);
  const [least] = pixels[0] as [number];
  expect(pixels.slice(0, 3)).toEqual([
    [least, 0],
    [least, 0.1],
    [least + 1, 0],
  ]);
});

test("what a file gets wrong is said before anything starts", async () => {
  const message = (changes: object) => {
    try {
      readSweep(place.write("wrong", changes));
    } catch (error) {
      return (error as Error).message;
    }
    return "";
  };
  expect(message({ space: { "trainer.klCof": [1] } })).toContain(
    "space.trainer.klCof: unknown knob trainer.klCof; did you mean trainer.klCoef?",
  );
  expect(message({ space: { "trainer.klCoef": [0, -1] } })).toContain("space.trainer.klCoef: -1: ");
  expect(message({ space: { "rollout.groupSize": { min: 1, max: 8 } } })).toContain("space.rollout.groupSize: 1: ");
  expect(message({ space: { seed: [1, 2] } })).toContain("space.seed cannot be set here");
  expect(message({ maxMinutes: 1e6 })).toContain("maxMinutes: expected number to be <=30000");
  expect(message({ trails: 3 })).toContain("unknown key trails; did you mean trials?");
  expect(message({ set: { "trainer.stepz": 3 } })).toContain("did you mean trainer.steps?");
  expect(message({ first: [{ "trainer.klCoef": 0.04 }] })).toContain("first.0: optimizer.learningRate is missing");
  expect(message({ first: [{ "trainer.klCoef": 0.5, "optimizer.learningRate": 0.1 }] })).toContain(
    "trainer.klCoef: 0.5 is not in the space",
  );
  expect(message({ search: "grid" })).toContain("a grid needs values");
  const large = { search: "grid", trials: undefined, space: { "data.maxPixels": { min: 4000, max: 12_000_000 } } };
  expect(message(large)).toMatch(/a grid of 11,996,001 settings: give .*, set trials or/);
  expect(message({ ...large, trials: 10_001 })).toContain("a grid of 11,996,001 settings: give");
  const inOrder = { "data.minPixels": { min: 9000, max: 9_000_000 }, "data.maxPixels": [9001] }; // two of them
  expect(message({ ...large, space: inOrder, trials: 5 })).toMatch(/settings, of whose first 10000 2 are in order: /);
  const list = path.join(place.folder, "list.yaml");
  writeFileSync(list, "[space, objective]");
  expect(() => readSweep(list)).toThrow(`${list}: expected a mapping of keys, got ["space","objective"]`);
  expect(message({ trials: undefined })).toContain("trials is required");
  expect(message({ config: undefined })).toContain("config: expected a config file or a list of them");
  expect(message({ space: { "trainer.klCoef": 0.1 } })).toContain("space.trainer.klCoef: expected [a, b], ");
  expect(place.starts()).toEqual([]);
});

test("a metric that runs do not have ends the sweep at once, with the one that was meant", async () => {
  const file = place.write("metric", { objective: { metric: "reward/acuracy" } });
  await expect(run(file)).rejects.toThrow(/has no metric reward\/acuracy; did you mean reward\/accuracy\?/);
  expect(place.starts()).toHaveLength(1);
});

test("a run that takes too long has failed", async () => {
  process.env.FAKE_STEP_MS = "100000";
  const { trials } = await run(place.write("late", { trials: 1, maxMinutes: 0.01 }));
  delete process.env.FAKE_STEP_MS;
  expect(trials[0]).toMatchObject({ status: "failed", runs: [{ reason: "took longer than maxMinutes: 0.01" }] });
});

test("a folder is one sweep's", async () => {
  const file = place.write("owned", { trials: 1 });
  await run(file);
  const changed = place.write("owned", { trials: 1, seed: 9 });
  await expect(run(changed)).rejects.toThrow(/holds an experiment with other settings[\s\S]*seed: 0 -> 9/);
  expect((await run(changed, { overwrite: true })).trials).toHaveLength(1);
  const more = place.write("owned", { trials: 2, seed: 9 });
  expect((await run(more)).trials).toHaveLength(2); // more trials are the same sweep
  expect(place.starts()).toHaveLength(3);
  writeFileSync(path.join(place.folder, "owned", "lock"), String(process.ppid));
  await expect(run(more)).rejects.toThrow(/is at work in/);
});
