/** Runs that are killed at the worst moments, told to stop, and resumed, in processes of their own. */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { dumpConfig } from "../../src/config/load.ts";
import type { Config } from "../../src/config/schema.ts";
import { latestCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

const SCRIPT = fileURLToPath(new URL("tiny-grpo.ts", import.meta.url));
const STEPS = 8;

let world: TinyWorld;
let straight: Config;

beforeAll(async () => {
  world = await makeTinyWorld();
  straight = config("straight");
  expect(await launch(straight).ended).toMatchObject({ code: 0 });
});
afterAll(() => rmSync(world.folder, { recursive: true }));

function config(name: string): Config {
  return tinyConfig(world, name, {
    rollout: { groupSize: 4, maxNewTokens: 24 },
    trainer: { questionsPerStep: 4, steps: STEPS, saveEvery: 2, keepLast: 2 },
  });
}

interface Run {
  child: ChildProcess;
  /** Resolves once the process has printed a line that ends so. */
  printed(line: string): Promise<void>;
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>;
}

function launch(config: Config, ...flags: string[]): Run {
  const file = path.join(world.folder, `${path.basename(config.runDir)}.yaml`);
  writeFileSync(file, dumpConfig(config));
  const child = spawn(process.execPath, ["--import", "tsx", SCRIPT, file, ...flags], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let notify = () => {};
  const onData = (data: Buffer) => {
    output += data.toString();
    notify();
  };
  child.stdout?.on("data", onData);
  child.stderr?.on("data", onData);
  const ended = new Promise<Awaited<Run["ended"]>>((resolve) => {
    child.on("close", (code, signal) => {
      resolve({ code, signal, output });
      notify();
    });
  });
  const printed = (line: string) =>
    new Promise<void>((resolve, reject) => {
      notify = () => {
        if (output.includes(`${line}\n`)) resolve();
        else if (child.exitCode !== null) reject(new Error(`ended without printing "${line}":\n${output}`));
      };
      notify();
    });
  return { child, printed, ended };
}

/** Compares a run, once it is finished, with the one that never stopped. */
function expectSameAsStraight({ runDir }: Config): void {
  const lines = (dir: string) => readMetrics(path.join(dir, "metrics.jsonl")).map(deterministic);
  expect(lines(runDir)).toEqual(lines(straight.runDir));
  for (const file of ["final/model.safetensors", `checkpoint-${STEPS}/optimizer.safetensors`, "completions.jsonl"]) {
    const [a, b] = [straight.runDir, runDir].map((dir) => readFileSync(path.join(dir, file)));
    expect(a?.equals(b as Buffer), file).toBe(true);
  }
}

const halfWritten = (runDir: string) =>
  existsSync(runDir) && readdirSync(runDir).some((name) => name.startsWith(".checkpoint-"));

test("SIGKILL between checkpoints", async () => {
  const killed = config("killed between");
  for (const [line, ...flags] of [["step 1"], ["step 3"], ["step 5", "--resume"]] as [string, ...string[]][]) {
    if (line === "step 3") rmSync(killed.runDir, { recursive: true }); // once more from the start, further
    const run = launch(killed, ...flags);
    await run.printed(line);
    run.child.kill("SIGKILL");
    expect(await run.ended).toMatchObject({ signal: "SIGKILL" });
  }
  expect(await launch(killed, "--resume").ended).toMatchObject({ code: 0 });
  expectSameAsStraight(killed);
});

test("SIGKILL during checkpoints, at several moments", async () => {
  const killed = config("killed during");
  let caught = 0;
  for (let attempt = 0; attempt < 8 && caught < 3; attempt++) {
    const run = launch(killed, "--resume"); // from the start where there is nothing to resume from
    let over = false;
    run.ended.then(() => {
      over = true;
    });
    while (!over && !halfWritten(killed.runDir)) await sleep(1);
    await sleep(4 * attempt); // further into the writing each time
    run.child.kill("SIGKILL");
    await run.ended;
    if (halfWritten(killed.runDir)) caught++;
    else if (over) rmSync(killed.runDir, { recursive: true }); // it got through unseen, all its checkpoints written: once more from the start
    // What an earlier kill left behind must not be taken for the next checkpoint being written.
    if (caught < 3 && existsSync(killed.runDir)) {
      for (const name of readdirSync(killed.runDir).filter((name) => name.startsWith(".checkpoint-")))
        rmSync(path.join(killed.runDir, name), { recursive: true });
    }
  }
  expect(caught).toBeGreaterThan(0);
  expect(await launch(killed, "--resume").ended).toMatchObject({ code: 0 });
  expect(halfWritten(killed.runDir)).toBe(false);
  expectSameAsStraight(killed);
});

test.each([
  "SIGTERM",
  "SIGINT",
] as const)("%s finishes the step, saves and exits 0; the run can be resumed", async (signal) => {
  const stopped = config(`stopped by ${signal}`);
  const run = launch(stopped);
  await run.printed("step 3");
  run.child.kill(signal);
  const { code, output } = await run.ended;
  expect(code).toBe(0);
  const step = Number(/stopped at (\d+)/.exec(output)?.[1]);
  expect(step).toBeGreaterThanOrEqual(3);
  expect(latestCheckpoint(stopped.runDir)).toBe(path.join(stopped.runDir, `checkpoint-${step}`));
  expect(readMetrics(path.join(stopped.runDir, "metrics.jsonl"))).toHaveLength(step);
  expect(existsSync(path.join(stopped.runDir, "final"))).toBe(false);
  expect(await launch(stopped, "--resume").ended).toMatchObject({ code: 0 });
  expectSameAsStraight(stopped);
});

test("a second signal ends the process before the step does, and nothing is lost", async () => {
  const slow = tinyConfig(world, "hurried", {
    rollout: { groupSize: 16, maxNewTokens: 100 },
    trainer: { questionsPerStep: 12, steps: 2, saveEvery: 1, iterations: 40 }, // a step of several seconds
  });
  const run = launch(slow);
  await run.printed('"msg":"saved"}'); // step 1 is over
  await sleep(300);
  run.child.kill("SIGTERM");
  await run.printed('leaves at once"}'); // the end of the log line
  await sleep(1200);
  run.child.kill("SIGTERM");
  const { code, signal, output } = await run.ended;
  expect(signal === "SIGTERM" || code === 143, output).toBe(true);
  expect(output).not.toContain("step 2");
  expect(readMetrics(path.join(slow.runDir, "metrics.jsonl"))).toHaveLength(1);
  expect(await launch(slow, "--resume").ended).toMatchObject({ code: 0 });
});

test("one request to stop that arrives twice, as through npm, saves and leaves in order", async () => {
  const config = tinyConfig(world, "twice", { trainer: { steps: 200, saveEvery: 0 } });
  const run = launch(config);
  await run.printed("step 2");
  run.child.kill("SIGINT");
  await sleep(30);
  run.child.kill("SIGINT");
  const { code, output } = await run.ended;
  expect(code, output).toBe(0);
  const lines = readMetrics(path.join(config.runDir, "metrics.jsonl"));
  expect(lines.length).toBeLessThan(200);
  expect(
    await launch({ ...config, trainer: { ...config.trainer, steps: lines.length + 1 } }, "--resume").ended,
  ).toMatchObject({
    code: 0,
  });
});
