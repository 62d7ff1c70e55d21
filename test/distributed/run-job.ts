/** Whole jobs from the command line, for tests. */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { stringify } from "yaml";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

export const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

/** Writes the config of a job in `<world>/<name>`. */
export function writeJob(world: TinyWorld, name: string, steps: number): { file: string; runDir: string } {
  const config = tinyConfig(world, name, { trainer: { questionsPerStep: 4, steps, saveEvery: 1, keepLast: 3 } });
  const file = path.join(world.folder, `${name}.yaml`);
  writeFileSync(file, stringify(config));
  return { file, runDir: config.runDir };
}

/** A job in `<world>/<name>`, its run folder, and what it prints. */
export function startJob(
  world: TinyWorld,
  name: string,
  steps: number,
  flags: readonly string[],
  env: NodeJS.ProcessEnv = {},
) {
  const { file, runDir } = writeJob(world, name, steps);
  const child = spawn(process.execPath, ["--import", "tsx", MAIN, "grpo", "--config", file, ...flags], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  const said = { stdout: "", stderr: "" };
  child.stdout.on("data", (data) => {
    said.stdout += data;
  });
  child.stderr.on("data", (data) => {
    said.stderr += data;
  });
  const ended = new Promise<{ status: number | null; stdout: string; stderr: string }>((resolve) => {
    child.once("close", (status) => resolve({ status, ...said }));
  });
  return { child, said, ended, runDir };
}

export const linesOf = (runDir: string) => {
  const file = path.join(runDir, "metrics.jsonl");
  return existsSync(file) ? readMetrics(file) : [];
};

/** Waits for a job's line of step `step`. Throws what the job said when it ends before. */
export async function untilStep({ child, said, runDir }: ReturnType<typeof startJob>, step: number): Promise<void> {
  while ((linesOf(runDir).at(-1)?.step ?? 0) < step) {
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`the job ended before step ${step}:\n${said.stderr}`);
    await sleep(20);
  }
}

/** Process ids of what a process has started. */
export function childPids({ pid }: ChildProcess): number[] {
  return read(`/proc/${pid}/task/${pid}/children`).split(" ").filter(Boolean).map(Number);
}

/** Process ids of the ranks of a launcher, by rank. */
export function rankPids(launcher: ChildProcess): Map<number, number> {
  const placed = childPids(launcher).flatMap((child): [number, number][] => {
    const rank = /\0GROVE_RANK=(\d+)\0/.exec(read(`/proc/${child}/environ`))?.[1];
    return rank === undefined ? [] : [[Number(rank), child]];
  });
  return new Map(placed);
}

/** A file of a process; empty where that has gone. */
function read(file: string): string {
  try {
    return readFileSync(file, "utf8").trim();
  } catch {
    return "";
  }
}

export function isAlive(pid: number): boolean {
  return /^State:\s+[^ZX]/m.test(read(`/proc/${pid}/status`));
}
