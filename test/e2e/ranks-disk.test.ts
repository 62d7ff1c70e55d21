/** Checkpoints that ranks write together, where the disk of one of them is full, or slow. */

import { spawn, spawnSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { freePort } from "../../src/distributed/launcher.ts";
import { readCheckpoint } from "../../src/trainer/checkpoint.ts";
import { linesOf, MAIN, startJob, writeJob } from "../distributed/run-job.ts";
import { deterministic, makeTinyWorld, type TinyWorld } from "../trainer/tiny-run.ts";

vi.setConfig({ testTimeout: 600_000 });

const STEPS = 4;
const FAILS = fileURLToPath(new URL("../trainer/rewards/fails-in-step-2.mjs", import.meta.url));
let world: TinyWorld;
let straight: string; // run folder of a job that nothing befell
beforeAll(async () => {
  world = await makeTinyWorld();
  const job = startJob(world, "straight", STEPS, ["--nproc", "2"]);
  expect(await job.ended).toMatchObject({ status: 0 });
  straight = job.runDir;
}, 600_000);
afterAll(() => rmSync(world.folder, { recursive: true }));

/** A job of two ranks as a scheduler starts them, rank 1 in a shell that first runs `prepare`. */
async function job(name: string, prepare: string, env: NodeJS.ProcessEnv, flags: readonly string[] = []) {
  const { file, runDir } = writeJob(world, name, STEPS);
  const port = String(await freePort());
  const ranks = [0, 1].map((rank) => {
    const command = `${rank === 1 ? prepare : ":"}; exec "$0" --import tsx "$@"`;
    const args = ["-c", command, process.execPath, MAIN, "grpo", "--config", file, ...flags];
    const place = { RANK: String(rank), WORLD_SIZE: "2", LOCAL_RANK: String(rank), LOCAL_WORLD_SIZE: "2" };
    const child = spawn("bash", args, {
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, ...place, MASTER_ADDR: "127.0.0.1", MASTER_PORT: port, ...(rank === 1 ? env : {}) },
    });
    let stderr = "";
    child.stderr.on("data", (data) => {
      stderr += data;
    });
    return new Promise<{ status: number | null; stderr: string; endedAt: number }>((resolve) => {
      child.once("close", (status) => resolve({ status, stderr, endedAt: performance.now() }));
    });
  });
  return { results: await Promise.all(ranks), runDir };
}

const checkpoints = (runDir: string) => readdirSync(runDir).filter((name) => name.includes("checkpoint-"));
const weights = (runDir: string) => readFileSync(path.join(runDir, "final/model.safetensors"));

test("a full disk of one rank ends all with the reason and leaves no half checkpoint; the run goes on from nothing", async () => {
  // No file of more than 16 KiB: its log fits, its part of the optimizer's state does not.
  const { results, runDir } = await job("full", "ulimit -f 16", {});
  expect(results.map(({ status }) => status)).toEqual([1, 1]);
  expect(results[0]?.stderr).toMatch(/error \[[A-Z]+\] .*(rank 1|EFBIG)/);
  expect(results.map(({ stderr }) => stderr).join()).toMatch(/EFBIG/);
  expect(checkpoints(runDir)).toEqual([]);
  const again = await job("full", ":", {}, ["--resume"]);
  expect(again.results.map(({ status }) => status)).toEqual([0, 0]);
  expect(weights(runDir).equals(weights(straight))).toBe(true);
  expect(linesOf(runDir).map(({ step }) => step)).toEqual([1, 2, 3, 4]);
});

const SLOW = `#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
extern "C" int fsync(int file) { usleep(1000 * atoi(getenv("SLOW_MS"))); return static_cast<int>(syscall(SYS_fsync, file)); }
`;
const hasCompiler = spawnSync("g++", ["--version"]).status === 0;

/** What a rank's environment has where each of its files takes `ms` to reach the disk. */
function slowDisk(ms: number): NodeJS.ProcessEnv {
  const source = path.join(world.folder, "slow.cc");
  const library = path.join(world.folder, "slow.so");
  writeFileSync(source, SLOW);
  expect(spawnSync("g++", ["-shared", "-fPIC", "-o", library, source]).status).toBe(0);
  return { LD_PRELOAD: library, SLOW_MS: String(ms) };
}

test.skipIf(!hasCompiler)(
  "a slow disk of one rank: nobody takes it for dead, every checkpoint is whole, no step is another",
  async () => {
    const { results, runDir } = await job("slow", ":", slowDisk(700), ["--set", "distributed.heartbeatS=2"]);
    expect(results.map(({ status, stderr }) => (status === 0 ? "" : stderr))).toEqual(["", ""]);
    const kept = checkpoints(runDir);
    expect(kept).toHaveLength(3);
    for (const name of kept)
      expect(readCheckpoint(path.join(runDir, name), "grpo").step).toBe(Number(name.split("-")[1]));
    expect(linesOf(runDir).map(deterministic)).toEqual(linesOf(straight).map(deterministic));
    expect(weights(runDir).equals(weights(straight))).toBe(true);
    // It was slow indeed: the last checkpoint waits for rank 1's files.
    expect(Math.max(...linesOf(runDir).map((line) => line["time/checkpoint_s"] ?? 0))).toBeGreaterThan(0.7);
  },
);

test.skipIf(!hasCompiler)(
  "a rank that fails while its checkpoint is on the way to a slow disk says so first; it has seconds for the rest",
  async () => {
    const reward = `rewards=[{name: e, path: ${FAILS}}]`;
    const env = { ...slowDisk(60_000), GROVE_TEST_FAILS: "1" };
    const { results, runDir } = await job("failing", ":", env, ["--set", reward]);
    const [other, failing] = results as [(typeof results)[0], (typeof results)[0]];
    expect([other.status, failing.status]).toEqual([1, 1]);
    expect(other.stderr).toMatch(
      /error \[COLLECTIVE\] rank 0 of 2, in step 2, .+ for \d+ s: rank 1 has failed, in step 2, reward for .*CUDA out of memory, or so/,
    );
    expect(failing.stderr).toMatch(
      /error \[REWARD\] .*CUDA out of memory, or so\n[\s\S]*^ {2}ended before everything was closed/m,
    );
    const held = (failing.endedAt - other.endedAt) / 1000;
    expect(held).toBeGreaterThan(5);
    expect(held).toBeLessThan(25);
    expect(checkpoints(runDir)).toEqual([]);
  },
);
