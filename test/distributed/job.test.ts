/** `grove grpo --nproc`: a whole job from the command line. */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { freePort } from "../../src/distributed/launcher.ts";
import { deterministic, makeTinyWorld, type TinyWorld } from "../trainer/tiny-run.ts";
import { isAlive, linesOf, MAIN, rankPids, startJob, untilStep, writeJob } from "./run-job.ts";

vi.setConfig({ testTimeout: 300_000 });

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const job = (name: string, steps: number, flags: readonly string[], env: NodeJS.ProcessEnv = {}) =>
  startJob(world, name, steps, flags, env);

test("--nproc 2 makes the run that one process makes, and speaks once", async () => {
  const [one, two] = [job("alone", 2, []), job("together", 2, ["--nproc", "2"])];
  expect(await one.ended).toMatchObject({ status: 0 });
  const { status, stdout, stderr } = await two.ended;
  expect(stderr).not.toMatch(/error \[|"level":[56]0/); // a metric may count errors
  expect(status).toBe(0);
  expect(stdout).toBe(`2 steps made; the trained model is in ${two.runDir}/final\n`);
  const [a, b] = [one, two].map(({ runDir }) => linesOf(runDir).map(deterministic));
  expect(b?.length).toBe(2);
  for (const [i, line] of a?.entries() ?? [])
    expect(b?.[i]?.["loss/total"]).toBeCloseTo(line["loss/total"] as number, 6);
  expect(readdirSync(path.join(two.runDir, "ranks")).sort()).toEqual(["rank-0.log", "rank-1.jsonl", "rank-1.log"]);
});

const hasTorchrun = spawnSync("torchrun", ["--help"]).status === 0;

test.skipIf(!hasTorchrun)("ranks that torchrun has started join at its agent's store", () => {
  const { file, runDir } = writeJob(world, "torchrun", 2);
  const command = [process.execPath, "--import", "tsx", MAIN, "grpo", "--config", file];
  const args = ["--nproc-per-node", "2", "--standalone", "--no-python", ...command];
  const { status, stdout, stderr } = spawnSync("torchrun", args, { encoding: "utf8" });
  expect(status, stderr).toBe(0);
  expect(stdout).toBe(`2 steps made; the trained model is in ${runDir}/final\n`);
  expect(linesOf(runDir).map(({ step }) => step)).toEqual([1, 2]);
});

test("SIGKILL of any rank ends the job within seconds, naming it; the newest checkpoint is whole and the run goes on from it", async () => {
  for (const victim of [1, 0]) {
    const name = `killed-${victim}`;
    const running = job(name, 500, ["--nproc", "2"]);
    const { child, ended, runDir } = running;
    await untilStep(running, 2);
    const pids = rankPids(child);
    process.kill(pids.get(victim) as number, "SIGKILL");
    const start = performance.now();
    const { status, stderr } = await ended;
    expect(performance.now() - start).toBeLessThan(20_000);
    expect(status).toBe(1);
    const log = path.join(runDir, `ranks/rank-${victim}.log`);
    expect(stderr).toMatch(
      new RegExp(
        `error \\[RANK\\] rank ${victim} was ended by SIGKILL in step \\d+; the other ranks were ended; its log: `,
      ),
    );
    expect(stderr).toContain(log);
    for (const pid of pids.values()) expect(isAlive(pid)).toBe(false);
    const made = linesOf(runDir).at(-1)?.step as number;
    const resumed = job(name, made + 1, ["--resume", "--nproc", "2"]);
    expect(await resumed.ended).toMatchObject({ status: 0 });
    expect(linesOf(runDir).map(({ step }) => step)).toEqual(Array.from({ length: made + 1 }, (_, i) => i + 1));
  }
});

test("--max-restarts: a job whose ranks are killed goes on from its newest checkpoint; no step is lost or counted twice", async () => {
  const running = job("restarted", 30, ["--nproc", "2", "--max-restarts", "3"]);
  const { child, ended, runDir } = running;
  for (const [victim, step] of [
    [1, 2],
    [0, 5],
  ] as const) {
    await untilStep(running, step);
    process.kill(rankPids(child).get(victim) as number, "SIGKILL");
    await sleep(1500); // the lines of later steps may be cut and written again
  }
  const { status, stderr } = await ended;
  expect(status).toBe(0);
  expect(stderr).toMatch(/"restart":1.*rank 1 was ended by SIGKILL/);
  expect(stderr).toMatch(/"restart":2.*rank 0 was ended by SIGKILL/);
  const lines = linesOf(runDir);
  expect(lines.map(({ step }) => step)).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
  const straight = job("never-killed", 30, ["--nproc", "2"]);
  expect(await straight.ended).toMatchObject({ status: 0 });
  for (const [i, line] of linesOf(straight.runDir).map(deterministic).entries())
    expect(deterministic(lines[i] as Record<string, number>)["grad/norm"]).toBe(line["grad/norm"]);
});

test("--max-restarts with one process: one rank under its launcher, started again when it is killed", async () => {
  const running = job("single", 30, ["--max-restarts", "1"]);
  await untilStep(running, 2);
  const pids = rankPids(running.child);
  expect([...pids.keys()]).toEqual([0]);
  process.kill(pids.get(0) as number, "SIGKILL");
  const { status, stdout, stderr } = await running.ended;
  expect(stderr).toMatch(/"restart":1.*rank 0 was ended by SIGKILL in step \d+/);
  expect(status).toBe(0);
  expect(stdout).toBe(`30 steps made; the trained model is in ${running.runDir}/final\n`);
  expect(linesOf(running.runDir).map(({ step }) => step)).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
});

test("a rank that hangs ends the job when its time is up, and is named", async () => {
  const running = job("hanging", 500, ["--nproc", "2", "--set", "distributed.timeoutS=15"]);
  await untilStep(running, 1);
  process.kill(rankPids(running.child).get(1) as number, "SIGSTOP");
  const { status, stderr } = await running.ended;
  expect(status).toBe(1);
  expect(stderr).toMatch(/error \[RANK\] rank 0 ended with status 1 in step \d+/);
  expect(stderr).toMatch(/error \[COLLECTIVE\] rank 0 of 2, .* #\d+.*: rank 1 has not come to it within 15000 ms/);
});

test("a rank whose JavaScript loops ends the job within distributed.stallS and seconds, with its step, its stack and its log", async () => {
  const [sign, spinner] = ["spin", "spinner.mjs"].map((name) => path.join(world.folder, name)) as [string, string];
  const loop = `setInterval(function turnForEver() { while (process.env.GROVE_RANK === "1" && existsSync(sign)); }, 50).unref();`;
  writeFileSync(spinner, `import { existsSync } from "node:fs";\nconst sign = ${JSON.stringify(sign)};\n${loop}\n`);
  const flags = ["--nproc", "2", "--set", "distributed.stallS=8"];
  const running = job("looping", 500, flags, { NODE_OPTIONS: `--import ${spinner}` });
  await untilStep(running, 1);
  writeFileSync(sign, "");
  const start = performance.now();
  const { status, stderr } = await running.ended;
  expect(performance.now() - start).toBeLessThan(40_000); // the knob is 45 s by default
  expect(status).toBe(1);
  expect(stderr).toMatch(/error \[RANK\] rank 1 ended with status 1 in step \d+; .*its log: .*rank-1\.log/);
  expect(stderr).toMatch(
    /error \[STALL\] rank 1 of 2, in step \d+, .* for \d+ s: no progress within the limit of 8\.000 s .*last operator \w+::\S+ /,
  );
  expect(stderr).toContain("turnForEver");
});

test("ranks that a scheduler has started: one that is killed ends the others, which name it, its step and its log", async () => {
  const port = String(await freePort());
  const [first, second] = [0, 1].map((rank) =>
    startJob(world, "scheduled", 500, ["--set", "distributed.heartbeatS=3"], {
      ...{ RANK: String(rank), WORLD_SIZE: "2", LOCAL_RANK: String(rank), LOCAL_WORLD_SIZE: "2" },
      ...{ MASTER_ADDR: "127.0.0.1", MASTER_PORT: port },
    }),
  ) as [ReturnType<typeof startJob>, ReturnType<typeof startJob>];
  await untilStep(first, 2);
  second.child.kill("SIGKILL");
  const start = performance.now();
  const { status, stderr } = await first.ended;
  expect(performance.now() - start).toBeLessThan(25_000); // the knob is 30 s by default
  expect(status).toBe(1);
  expect(stderr).toMatch(/error \[COLLECTIVE\] rank 0 of 2, in step \d+, .+ for \d+ s: no sign of life/);
  expect(stderr).toMatch(/rank 1, last heard of \d+ s ago, was in step \d+/);
  expect(stderr).toContain(`its log: ${first.runDir}/ranks/rank-1.jsonl`);
});

test("SIGTERM: all ranks finish the same step, and the run is saved", async () => {
  const running = job("stopped", 500, ["--nproc", "2"]);
  const { child, ended, runDir } = running;
  await untilStep(running, 1);
  child.kill("SIGTERM");
  const { status, stdout } = await ended;
  expect(status).toBe(0);
  const made = linesOf(runDir).at(-1)?.step as number;
  expect(stdout).toBe(`stopped after step ${made}; the same command with --resume goes on from ${runDir}\n`);
  expect(existsSync(path.join(runDir, `checkpoint-${made}`, "manifest.json"))).toBe(true);
});

test("ranks do not outlive a launcher that is killed", async () => {
  const running = job("orphans", 500, ["--nproc", "2"]);
  const { child, ended } = running;
  await untilStep(running, 1);
  const pids = rankPids(child);
  child.kill("SIGKILL");
  await ended;
  for (let waited = 0; waited < 1000 && [...pids.values()].some(isAlive); waited++) await sleep(50);
  for (const pid of pids.values()) expect(isAlive(pid)).toBe(false);
});

test.each([
  [["--nproc", "5"], {}, /5 ranks, but trainer\.questionsPerStep is 4/],
  [["--nproc", "0"], {}, /--nproc 0: expected a number of processes/],
  [["--nproc", "2", "--device", "cuda:1"], {}, /set device to cuda, not cuda:1/],
  [[], { RANK: "0" }, /WORLD_SIZE is missing/],
  [
    ["--nproc", "2"],
    { RANK: "0", WORLD_SIZE: "2", LOCAL_RANK: "0", LOCAL_WORLD_SIZE: "2", MASTER_ADDR: "localhost", MASTER_PORT: "9" },
    /--nproc 2: torchrun has started 2 ranks already/,
  ],
])("what does not fit is refused before anything starts: %j", async (flags, env, message) => {
  const { ended, runDir } = job("refused", 1, flags, env);
  const { status, stderr } = await ended;
  expect(status).toBe(1);
  expect(stderr).toMatch(message);
  expect(readdirSync(runDir)).toEqual([]);
});
