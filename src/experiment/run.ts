/** One run of an experiment, in a process of its own: started, watched by its metrics, stopped where it is not worth more steps. */

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, rmSync, statSync, writeSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { readMetrics } from "../trainer/run-folder.ts";
import type { Line } from "./objective.ts";
import type { Slot } from "./slots.ts";

/** The command line of our own CLI, up to the command's name. */
export interface Program {
  program: string;
  args: readonly string[];
}

export interface RunOrder {
  /** Name of a command, then its flags but for those below. */
  args: readonly string[];
  runDir: string;
  slot: Slot;
  /** An evaluation: it goes on by itself from the answers its folder holds, and ends with status 0. */
  evaluates?: boolean;
  /** Called with all lines so far whenever there are new ones, and at the end; true: stop the run. */
  onLines?: (lines: readonly Line[]) => boolean;
  /** Ends the run in an orderly way: the experiment itself is asked to stop. */
  signal: AbortSignal;
  maxMinutes?: number | undefined;
  pollMs?: number;
}

export interface RunEnd {
  /** stopped: because `onLines` said so; interrupted: because the experiment was asked to stop. */
  how: "finished" | "stopped" | "failed" | "interrupted";
  lines: Line[];
  seconds: number;
  /** Why it failed. */
  reason?: string;
}

/** Set for runs: the process id of who started them, with which they end. */
export const EXPERIMENT = "GROVE_EXPERIMENT_PID";

const POLL_MS = 250;
/** How long a run may take to end when told to before it is killed, ms. */
const GRACE_MS = 20_000;
const TAIL_LINES = 20;

/**
 * Makes the run, or goes on with it from its newest checkpoint where an earlier process has begun it and left one.
 * What it prints is kept in `<runDir>.log`.
 */
export async function makeRun(program: Program, order: RunOrder): Promise<RunEnd> {
  const { runDir, slot, onLines, signal, evaluates = false } = order;
  const begun = existsSync(runDir) && readdirSync(runDir).some((name) => /^checkpoint-\d+$/.test(name));
  if (!begun && !evaluates) rmSync(runDir, { recursive: true, force: true });
  mkdirSync(path.dirname(runDir), { recursive: true });
  const set = slot.set.flatMap((one) => ["--set", one]);
  const training = evaluates ? [] : ["--json", ...(begun ? ["--resume"] : [])];
  const args = [...program.args, ...order.args, ...set, "--run-dir", runDir, ...training];
  const start = performance.now();
  const child = spawn(program.program, args, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...slot.env, [EXPERIMENT]: String(process.pid) },
  });
  const output = keepOutput(child, `${runDir}.log`);
  const ended = new Promise<{ code: number | null; by: string | undefined }>((resolve) => {
    child.once("error", (error) => resolve({ code: null, by: `could not be started: ${error.message}` }));
    child.once("close", (code, by) => resolve({ code, by: by === null ? undefined : `was ended by ${by}` }));
  });

  let told = false;
  let kill: NodeJS.Timeout | undefined;
  const tell = () => {
    if (told) return;
    told = true;
    child.kill("SIGTERM");
    kill = setTimeout(() => child.kill("SIGKILL"), GRACE_MS);
  };
  const file = path.join(runDir, "metrics.jsonl");
  let lines: Line[] = [];
  let seen = 0;
  let stopped = false;
  const look = () => {
    const bytes = existsSync(file) ? statSync(file).size : 0;
    if (bytes === seen) return;
    seen = bytes;
    lines = readMetrics(file);
    stopped ||= lines.length > 0 && onLines?.(lines) === true;
    if (stopped) tell();
  };
  killAtExit(child);
  signal.addEventListener("abort", tell, { once: true });
  if (signal.aborted) tell();
  let problem: unknown;
  const poll = setInterval(() => {
    try {
      look();
    } catch (error) {
      problem ??= error; // of onLines: the experiment cannot go on
      tell();
    }
  }, order.pollMs ?? POLL_MS);
  let late = false;
  const tooLong = () => {
    late = true;
    tell();
  };
  const limit = order.maxMinutes === undefined ? undefined : setTimeout(tooLong, order.maxMinutes * 60_000);
  const { code, by } = await ended;
  clearInterval(poll);
  clearTimeout(limit);
  clearTimeout(kill);
  signal.removeEventListener("abort", tell);
  if (problem !== undefined) throw problem;

  look(); // a run may end before it is told to
  const end = { lines, seconds: (performance.now() - start) / 1000 };
  if (stopped) return { how: "stopped", ...end };
  if (code === 0 && (evaluates || output.result()?.finished === true)) return { how: "finished", ...end };
  if (late) return { how: "failed", ...end, reason: `took longer than maxMinutes: ${order.maxMinutes}` };
  if (signal.aborted) return { how: "interrupted", ...end };
  const reason = by ?? (code === 0 ? "was stopped by a signal" : `ended with status ${code}`);
  const said = output.tail();
  return { how: "failed", ...end, reason: said === "" ? reason : `${reason}\n${said}` };
}

const alive = new Set<ChildProcess>();

/** Where this process ends without waiting for its runs, they end too. */
function killAtExit(child: ChildProcess): void {
  if (alive.size === 0) process.once("exit", killAll);
  alive.add(child);
  child.once("close", () => {
    if (alive.delete(child) && alive.size === 0) process.off("exit", killAll);
  });
}

function killAll(): void {
  for (const child of alive) child.kill("SIGKILL");
}

/** Writes a child's output to a file; keeps its last line on standard output, and the error message where there is one. */
function keepOutput({ stdout, stderr }: ChildProcess, logFile: string) {
  const file = openSync(logFile, "a");
  const tail: string[] = [];
  let last = "";
  let open = 0;
  const write = (line: string) => {
    try {
      writeSync(file, `${line}\n`);
    } catch {
      // A full disk is for the run to complain of, not for who watches it to die of.
    }
  };
  for (const stream of [stdout, stderr]) {
    if (stream === null) continue;
    open++;
    const lines = createInterface({ input: stream });
    lines.on("line", (line) => {
      write(line);
      if (stream === stdout) last = line;
      else {
        if (line.startsWith("error [")) tail.length = 0;
        tail.push(line);
        if (tail.length > TAIL_LINES) tail.shift();
      }
    });
    lines.on("close", () => {
      if (--open === 0) closeSync(file);
    });
  }
  return {
    tail: () => tail.join("\n"),
    result(): { finished?: boolean } | undefined {
      try {
        return JSON.parse(last) as { finished?: boolean };
      } catch {
        return undefined;
      }
    },
  };
}
