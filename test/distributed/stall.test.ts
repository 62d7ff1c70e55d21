/** A process that lives and gets nothing done: it says so and ends, and the job with it; one that is slow, or waits for others, goes on. */

import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect, test, vi } from "vitest";
import { type RankResult, spawnRanks } from "./spawn-ranks.ts";

vi.setConfig({ testTimeout: 300_000 });

const SCRIPT = fileURLToPath(new URL("stall-rank.ts", import.meta.url));

const briefly = (results: readonly RankResult[]) => results.map(({ status, stderr }) => ({ status, stderr }));

test("a loop in JavaScript: the rank says where, and the others name it, its step and its last operator", async () => {
  const [other, victim] = (await spawnRanks(2, SCRIPT, ["loop"])) as [RankResult, RankResult];
  expect([other.status, victim.status]).toEqual([1, 1]);
  expect(victim.stderr).toMatch(
    /^error \[STALL\] rank 1 of 2, in step 5, rollout for \d+ s: no progress within the limit of 2\.000 s \(distributed\.stallS\): JavaScript has not come back to its event loop for \d+ s \(main thread: R \(running\)\); last operator aten::ones \(here\)$/m,
  );
  expect(victim.stderr).toMatch(/^ {4}at spinOnAndOn \(.*stall-rank\.ts/m);
  expect(other.stderr).toMatch(
    /error \[COLLECTIVE\] rank 0 of 2, in step 5, update for \d+ s: rank 1 has failed, in step 5, rollout for \d+ s \(.*log of 1\): no progress within the limit/,
  );
});

test("a process alone that waits for the system without end says so", async () => {
  const child = spawn(process.execPath, ["--import", "tsx", SCRIPT, "system"], { stdio: ["ignore", "ignore", "pipe"] });
  let stderr = "";
  child.stderr.on("data", (data) => {
    stderr += data;
  });
  const status = await new Promise((resolve) => child.once("close", resolve));
  expect(status).toBe(1);
  expect(stderr).toMatch(/^error \[STALL\] in step 5, rollout for \d+ s: .*\(main thread: S \(sleeping\)\)/);
});

test("a process that waits for nothing any more is ended by Node", async () => {
  const child = spawn(process.execPath, ["--import", "tsx", SCRIPT, "never"], { stdio: "ignore" });
  expect(await new Promise((resolve) => child.once("close", resolve))).toBe(13);
});

test.each([
  ["work", "computes for longer than the limit"],
  ["await", "waits for something with its event loop alive"],
  ["patient", "does what is known to take long"],
])("%s: a rank that %s is not ended, nor is who waits for it", async (what) => {
  expect(briefly(await spawnRanks(2, SCRIPT, [what]))).toEqual(Array(2).fill({ status: 0, stderr: "" }));
});

test("ranks that all wait for one another end, and say what for", async () => {
  const results = await spawnRanks(2, SCRIPT, ["each-other"]);
  expect(results.map(({ status }) => status)).toEqual([1, 1]);
  expect(results.map(({ stderr }) => stderr).join()).toMatch(
    /all ranks wait for one another, and nothing has moved within the limit of 2\.000 s \(distributed\.stallS\): this one waits in collective #1; rank [01], last heard of \d+ s ago, was in step 5, \w+ for \d+ s, its last collective broadcast #1 .*, waits in collective #1/,
  );
});

test("a job that is paused as a whole goes on", async () => {
  const results = await spawnRanks(2, SCRIPT, ["work"], async (children) => {
    await Promise.all(children.map((child) => new Promise((resolve) => child.stdout?.once("data", resolve))));
    await sleep(500);
    for (const child of children) child.kill("SIGSTOP");
    await sleep(5000);
    for (const child of children) child.kill("SIGCONT");
  });
  expect(briefly(results)).toEqual(Array(2).fill({ status: 0, stderr: "" }));
});
