/**
 * A job whose ranks are killed at random moments, again and again, ends as one that nobody touched: no step is lost or made twice, no
 * checkpoint is damaged. GROVE_KILL_TRIALS sets how many are killed.
 */

import { readdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { hash64 } from "../../src/random.ts";
import { readCheckpoint } from "../../src/trainer/checkpoint.ts";
import { isAlive, linesOf, rankPids, startJob } from "../distributed/run-job.ts";
import { deterministic, makeTinyWorld, type TinyWorld } from "../trainer/tiny-run.ts";

const TRIALS = Number(process.env.GROVE_KILL_TRIALS ?? 6);
const WORLD = 2;
const STEPS = 25 * TRIALS; // enough for the last kill to come before the end
const draw = (trial: number, what: string, below: number) => (hash64(11, what, trial)[0] as number) % below;

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

test(`${TRIALS} kills`, async () => {
  const flags = ["--nproc", String(WORLD), "--set", "distributed.timeoutS=60"];
  const { child, ended, runDir } = startJob(world, "killed", STEPS, [...flags, "--max-restarts", String(TRIALS)]);
  let over = false;
  void ended.then(() => {
    over = true;
  });
  let known = new Set<number>();
  let kills = 0;
  for (let trial = 0; trial < TRIALS && !over; trial++) {
    // A new attempt: all of its processes are there, and none of the last one's.
    let pids = new Map<number, number>();
    while (!over && (pids.size < WORLD || [...pids.values()].some((pid) => known.has(pid) || !isAlive(pid)))) {
      await sleep(20);
      pids = rankPids(child);
    }
    await sleep(draw(trial, "moment", 3000)); // while it starts, joins, makes steps, saves
    known = new Set(pids.values());
    const victim = pids.get(draw(trial, "victim", WORLD)) as number;
    if (!over && isAlive(victim)) {
      process.kill(victim, "SIGKILL");
      kills++;
    }
    for (const name of readdirSync(runDir).filter((entry) => /^checkpoint-\d+$/.test(entry))) {
      try {
        readCheckpoint(path.join(runDir, name), "grpo");
      } catch (error) {
        // One that a rank has just removed, as it may, is no damage; a folder that is still there is.
        if (readdirSync(runDir).includes(name)) throw error;
      }
    }
  }
  const { status, stderr } = await ended;
  expect(status, stderr.slice(-2000)).toBe(0);
  expect(kills).toBe(TRIALS);
  const straight = startJob(world, "untouched", STEPS, flags);
  expect(await straight.ended).toMatchObject({ status: 0 });
  const [lines, expected] = [runDir, straight.runDir].map((dir) => linesOf(dir).map(deterministic));
  expect(lines?.map(({ step }) => step)).toEqual(Array.from({ length: STEPS }, (_, i) => i + 1));
  expect(lines).toEqual(expected);
  for (const file of ["final/model.safetensors", "completions.jsonl"]) {
    const [one, other] = [runDir, straight.runDir].map((dir) => readFileSync(path.join(dir, file)));
    expect(one?.equals(other as Buffer), file).toBe(true);
  }
  expect(readdirSync(runDir).filter((name) => name.startsWith("."))).toEqual([]);
});
