/** Processes that are killed while a checkpoint is written beside training, and disks that are full. */

import { spawn, spawnSync } from "node:child_process";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { dumpConfig } from "../../src/config/load.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";
import { readCheckpoint } from "../../src/trainer/checkpoint.ts";
import { latestCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { makeTinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

const script = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const TRIALS = 12;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), "checkpoint-failures-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The step of the checkpoint that `best` points to, whole in every file; 0 where there is no such link. */
function bestStep(runDir: string): number {
  const link = path.join(runDir, "best");
  return lstatSync(link, { throwIfNoEntry: false }) === undefined ? 0 : readCheckpoint(link, "sft").step;
}

/** The step of the newest checkpoint, 0 where there is none, after checking that it is that step's in every value. */
function checkedStep(runDir: string): number {
  const newest = latestCheckpoint(runDir);
  if (newest === undefined) return 0;
  const { step } = readCheckpoint(newest, "sft");
  expect(path.basename(newest)).toBe(`checkpoint-${step}`);
  for (const name of ["model/model.safetensors", "optimizer.safetensors"]) {
    using file = new SafetensorsFile(path.join(newest, name));
    for (const tensor of file.names()) {
      const values = scope(() => file.tensor(tensor).toArray()) as Float32Array;
      expect(
        values.every((value) => value === step),
        `${name}: ${tensor}`,
      ).toBe(true);
    }
  }
  return step;
}

test(`SIGKILL at ${TRIALS} moments of writing: the newest checkpoint is whole, of one step, and the run goes on from it`, async () => {
  const runDir = path.join(folder, "killed");
  mkdirSync(runDir);
  let caught = 0;
  let step = 0;
  for (let trial = 0; trial < TRIALS; trial++) {
    const child = spawn(process.execPath, ["--import", "tsx", script("tiny-checkpoints.ts"), runDir, "12"], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const ended = new Promise((resolve) => child.on("close", resolve));
    await new Promise((resolve) => child.stdout.once("data", resolve)); // the first checkpoint of this process is under way
    await sleep(47 * trial);
    child.kill("SIGKILL");
    await ended;
    if (readdirSync(runDir).some((name) => name.startsWith(".checkpoint-"))) caught++;
    const found = checkedStep(runDir);
    expect(found, "no checkpoint is lost").toBeGreaterThanOrEqual(step);
    step = found;
    // The link may be one checkpoint behind the newest, which was killed before it could be compared.
    const best = bestStep(runDir);
    const bestUntil = (last: number) => {
      const steps = Array.from({ length: last }, (_, i) => i + 1);
      return steps.reduce((one, other) => (other % 5 >= one % 5 ? other : one), 0);
    };
    expect([bestUntil(found), bestUntil(Math.max(0, found - 1))], `${found} checkpoints`).toContain(best);
  }
  expect(step, "checkpoints were completed on the way").toBeGreaterThan(0);
  expect(caught, "processes that were killed in the middle of writing").toBeGreaterThan(TRIALS / 3);
});

test("a disk that takes no more ends the run with the reason; what was there stays, and the run can be resumed", async () => {
  const world = await makeTinyWorld();
  try {
    const trainer = { questionsPerStep: 2, steps: 5, saveEvery: 2 };
    const straight = tinyConfig(world, "straight", { trainer });
    await trainSft(straight);
    const optimizer = statSync(path.join(straight.runDir, "checkpoint-4/optimizer.safetensors")).size;

    const full = tinyConfig(world, "full", { trainer });
    const file = path.join(world.folder, "full.yaml");
    writeFileSync(file, dumpConfig(full));
    const limit = Math.floor(optimizer / 1024) - 1; // no file may be as large as the optimizer's: the write fails half-way
    const command = `ulimit -f ${limit}; exec "$0" --import tsx "$1" "$2"`;
    const { status, stderr } = spawnSync("bash", ["-c", command, process.execPath, script("tiny-sft.ts"), file], {
      encoding: "utf8",
    });
    expect(status, stderr).toBe(1);
    expect(stderr).toMatch(/CheckpointError: .*checkpoint-2: could not be written: EFBIG/);
    expect(readdirSync(full.runDir).filter((name) => name.includes("checkpoint"))).toEqual([]);
    // The write fails beside step 3, or, where that is over sooner, the checkpoint of step 4 waits for it; both steps are written down.
    const steps = readMetrics(path.join(full.runDir, "metrics.jsonl")).map(({ step }) => step);
    expect([
      [1, 2, 3],
      [1, 2, 3, 4],
    ]).toContainEqual(steps);

    await trainSft(full, { resume: true });
    const weights = ({ runDir }: typeof full) => readFileSync(path.join(runDir, "final/model.safetensors"));
    expect(weights(full).equals(weights(straight))).toBe(true);
  } finally {
    rmSync(world.folder, { recursive: true });
  }
});
