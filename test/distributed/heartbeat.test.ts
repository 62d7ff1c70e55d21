/** Ranks that nobody watches over, as a scheduler starts them: what the others do when one of them dies, stops, throws or is merely slow. */

import type { ChildProcess } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect, test, vi } from "vitest";
import { type RankResult, spawnRanks } from "./spawn-ranks.ts";

vi.setConfig({ testTimeout: 300_000 });

/** A collective's limit in heartbeat-rank.ts: a job that ends sooner was ended by signs of life, or by their absence. */
const COLLECTIVE_S = 60;

const SCRIPT = fileURLToPath(new URL("heartbeat-rank.ts", import.meta.url));

/** Resolves when every rank has printed that it is in its step. */
function ready(children: readonly ChildProcess[]): Promise<void> {
  const each = children.map((child) => new Promise<void>((resolve) => child.stdout?.once("data", () => resolve())));
  return Promise.all(each).then(() => {});
}

/** Runs a job in which `victim` does something, and `act` is done to the ranks in their step. Seconds count from there. */
async function job(
  victim: number,
  what: string,
  act: (children: readonly ChildProcess[]) => Promise<unknown> | unknown = () => {},
  world = 3,
): Promise<{ results: RankResult[]; seconds: number }> {
  let start = 0;
  const results = await spawnRanks(world, SCRIPT, [String(victim), what], async (children) => {
    await ready(children);
    await sleep(2000); // six signs of life, which say so
    start = performance.now();
    await act(children);
  });
  return { results, seconds: (performance.now() - start) / 1000 };
}

test.each([
  1, 0,
])("SIGKILL of rank %i: the others end within the limit and name it, its step and its log", async (victim) => {
  const { results, seconds } = await job(victim, "wait", (children) => children[victim]?.kill("SIGKILL"));
  expect(seconds).toBeLessThan(COLLECTIVE_S);
  for (const [rank, { status, stderr }] of results.entries()) {
    if (rank === victim) continue;
    expect(status).toBe(1);
    expect(stderr).toMatch(new RegExp(`^error \\[COLLECTIVE\\] rank ${rank} of 3`, "m"));
    // The host collective of rank 0's store may be the first to know.
    if (victim === 0) expect(stderr).toMatch(/rank 0.* has ended|has rank 0, which keeps the store, ended/);
    else expect(stderr).toContain(`rank ${victim}, last heard of `);
    if (victim !== 0) expect(stderr).toMatch(/was in step 5, rollout for \d+ s.*process \d+, its log: log of 1\)/);
  }
});

test.each([2, 0])("SIGSTOP of rank %i: likewise, though its connections stay open", async (victim) => {
  let stopped: ChildProcess | undefined;
  const { results, seconds } = await job(victim, "wait", async (children) => {
    stopped = children[victim];
    stopped?.kill("SIGSTOP");
    const others = children.filter((child) => child !== stopped);
    await Promise.all(others.map((child) => new Promise((resolve) => child.once("exit", resolve))));
    stopped?.kill("SIGKILL");
  });
  expect(seconds).toBeLessThan(COLLECTIVE_S);
  for (const [rank, { status, stderr }] of results.entries()) {
    if (rank === victim) continue;
    expect(status).toBe(1);
    expect(stderr).toMatch(new RegExp(`rank ${victim}, last heard of ([3-9]|\\d\\d) s ago, was in step 5, rollout`));
  }
});

test("a rank that throws, out of memory say, tells the others, which end at once and say so", async () => {
  for (const victim of [1, 0]) {
    const { results, seconds } = await job(victim, "throw");
    expect(seconds).toBeLessThan(COLLECTIVE_S);
    for (const [rank, { status, stderr }] of results.entries()) {
      expect(status).toBe(1);
      if (rank === victim) continue;
      expect(stderr).toMatch(
        new RegExp(`rank ${rank} of 3, in step 5, update for \\d+ s: rank ${victim} has failed, in step 5, rollout`),
      );
      expect(stderr).toContain("error [NATIVE] linear([4, 4]): CUDA out of memory");
    }
  }
});

test("a rank that is busy for longer than the limit is no dead rank", async () => {
  const { results } = await job(1, "spin");
  expect(results.map(({ status, stderr }) => ({ status, stderr }))).toEqual(Array(3).fill({ status: 0, stderr: "" }));
});

test("a job that is paused as a whole goes on", async () => {
  const { results } = await job(1, "pause", async (children) => {
    for (const child of children) child.kill("SIGSTOP");
    await sleep(5000);
    for (const child of children) child.kill("SIGCONT");
  });
  expect(results.map(({ status, stderr }) => ({ status, stderr }))).toEqual(Array(3).fill({ status: 0, stderr: "" }));
});

test("a collective that outlasts a limit of its own says what the rank it waits for is at", async () => {
  const { results } = await job(1, "late");
  const said = results.filter((_, rank) => rank !== 1).map(({ stderr }) => stderr);
  expect(said.join()).toMatch(
    /barrier #1: rank 1 has not come to it within 1000 ms; rank 1, last heard of \d+ s ago, was in step 5, rollout for \d+ s, its last collective barrier #0/,
  );
  expect(results.map(({ status }) => status)).toEqual([1, 1, 1]);
});
