/** Several processes that share the questions of an evaluation: how they are started, watched and ended. */

import { type ChildProcess, spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { createInterface } from "node:readline";
import type { Config } from "../config/schema.ts";
import { ConfigError, ProcessError } from "../errors.ts";
import { log } from "../log.ts";
import type { Shard } from "./answers.ts";

/** Set for a process that reports its progress to the one that started it. */
export const REPORTS = "GROVE_REPORTS_PROGRESS";

/** Questions of one level that a process has answers to, and its share of them. */
export interface ShardProgress {
  level: string;
  done: number;
  total: number;
}

/** Where share k of N runs: the GPUs one each, or the CPU's threads split evenly. */
export interface Placement {
  device: string;
  threads: number;
}

/** @throws ConfigError when there are fewer GPUs than processes, or one GPU is named for all */
export function placeShards(config: Pick<Config, "device" | "threads">, count: number, gpus: number): Placement[] {
  if (config.device === "cpu") {
    const threads = Math.max(1, Math.floor((config.threads || availableParallelism()) / count));
    return Array.from({ length: count }, () => ({ device: "cpu", threads }));
  }
  if (config.device !== "cuda")
    throw new ConfigError(`--processes gives each process a GPU of its own: set device to cuda, not ${config.device}`);
  if (count > gpus) throw new ConfigError(`--processes ${count}, but ${gpus} GPUs are visible`);
  return Array.from({ length: count }, (_, index) => ({ device: `cuda:${index}`, threads: config.threads }));
}

export interface ShardProcess {
  program: string;
  args: readonly string[];
  shard: Shard;
}

/**
 * Runs the processes to their end. Their log lines go to standard error with the share before them. When one fails the others are
 * ended; so are all when this process is.
 *
 * @throws ProcessError with the end of the failed process's own messages
 */
export async function runShards(
  processes: readonly ShardProcess[],
  onProgress: (progress: ShardProgress) => void = () => {},
): Promise<void> {
  const progress = new Map<string, Map<number, ShardProgress>>();
  const children: ChildProcess[] = [];
  const end = () => {
    for (const child of children) child.kill("SIGTERM");
  };
  process.once("exit", end);
  try {
    const ended = processes.map(({ program, args, shard }) => {
      const child = spawn(program, [...args], {
        stdio: ["ignore", "ignore", "pipe", "ipc"],
        env: { ...process.env, [REPORTS]: "1" },
      });
      children.push(child);
      child.on("message", (message) => {
        const tick = message as ShardProgress;
        const level = progress.get(tick.level) ?? new Map<number, ShardProgress>();
        progress.set(tick.level, level.set(shard.k, tick));
        onProgress(together(tick.level, level));
      });
      return watch(child, shard);
    });
    await Promise.all(ended);
  } finally {
    process.off("exit", end);
    end();
    await Promise.all(children.map(gone));
  }
}

/** In a process of `runShards`: reports to the one that started it, and ends when that one is gone. Undefined in any other process. */
export function progressReporter(): ((progress: ShardProgress) => void) | undefined {
  if (process.env[REPORTS] === undefined || process.send === undefined) return undefined;
  if (!process.connected) process.exit(1);
  process.once("disconnect", () => process.exit(1));
  return (progress) => void process.send?.(progress);
}

/** Lets a process of `runShards` end by itself: the channel to its parent would keep it alive. */
export function endReports(): void {
  if (process.env[REPORTS] === undefined || !process.connected) return;
  process.removeAllListeners("disconnect");
  process.disconnect();
}

const TAIL_LINES = 30;

/** Resolves when the process has ended well. */
function watch(child: ChildProcess, { k, of }: Shard): Promise<void> {
  const share = `${k}/${of}`;
  const tail: string[] = [];
  let failing = false; // its last words belong to the error, not also to standard error
  const lines = child.stderr === null ? null : createInterface({ input: child.stderr });
  lines?.on("line", (line) => {
    if (relog(line, share)) return;
    if (line.startsWith("error [")) {
      failing = true;
      tail.length = 0;
    }
    tail.push(line);
    if (tail.length > TAIL_LINES) tail.shift();
    if (!failing) process.stderr.write(`[${share}] ${line}\n`);
  });
  return new Promise((resolve, reject) => {
    const fail = (how: string) => {
      reject(new ProcessError(`process ${share} of the evaluation`, how, tail.join("\n")));
    };
    child.once("error", (error) => fail(`could not be started: ${error.message}`));
    child.once("close", (code, signal) => {
      if (code === 0) resolve();
      else fail(signal === null ? `ended with status ${code}` : `was ended by ${signal}`);
    });
  });
}

/** Writes a log line of another process through this process's logger; false for a line that is none. */
function relog(line: string, share: string): boolean {
  try {
    const { level, msg, time: _time, ...fields } = JSON.parse(line) as { level: number; msg: string; time: unknown };
    const write = log[log.levels.labels[level] as "info"];
    write.call(log, { share, ...fields }, msg);
    return true;
  } catch {
    return false;
  }
}

function gone(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once("exit", () => resolve()));
}

function together(level: string, shards: ReadonlyMap<number, ShardProgress>): ShardProgress {
  const sum = { level, done: 0, total: 0 };
  for (const { done, total } of shards.values()) {
    sum.done += done;
    sum.total += total;
  }
  return sum;
}
