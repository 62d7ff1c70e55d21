/**
 * Starts a command once for every rank on this machine and looks after the processes: rank 0 speaks on the terminal, each one's output is
 * kept in a file, a rank that fails ends the others, and a signal is handed on once.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, writeSync } from "node:fs";
import { createServer } from "node:net";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { RankError } from "../errors.ts";
import { log } from "../log.ts";
import { CLOSING_MS } from "./operation.ts";
import { LAUNCHER } from "./starter.ts";

/** The ranks to start here, and where they and those of other machines meet. */
export interface Launch {
  program: string;
  args: readonly string[];
  /** Ranks on this machine. */
  count: number;
  /** The machines of the job, this one's number, and where rank 0 is; default: this one alone. */
  nodes?: { count: number; index: number; address: string; port: number };
  /** Folder of rank-<n>.log. */
  folder: string;
  /** Called when rank 0 reports. */
  onFirstReport?: () => void;
  /** How long ranks may take to end after SIGTERM before they are killed, ms. */
  graceMs?: number;
}

/** What a rank tells its launcher: steps made, none before the first one; rank 0 reports as soon as the run folder is the run's. */
export interface RankReport {
  step?: number;
}

/** Where the first rank to fail complains of another one, so long is waited for that one to fail too: it is the cause. */
const CAUSE_MS = 6000; // rank 0 stays two seconds and a half for its words to be read, and its process takes time to end
/** Where it heard from that one itself, which may have something to save. */
const SAVING_MS = CLOSING_MS + CAUSE_MS;
const GRACE_MS = 5000;
const TAIL_LINES = 30;

interface Rank {
  rank: number;
  child: ChildProcess;
  logFile: string;
  tail: string[]; // its latest lines, from its error message on where there is one
  step: number | undefined;
  ended: Promise<void>;
  failure: string | undefined; // how it ended, where not well
}

/**
 * Runs the ranks to their end, and after a failure that may pass `again`, at most `restarts` times. Until rank 0 has reported, the folder may
 * hold an older run, which is not to be gone on with: what is started again is `launch` then.
 * @throws RankError as launchRanks does
 */
export async function launchWithRestarts(launch: Launch, again: Launch, restarts: number): Promise<void> {
  let begun = false;
  const onFirstReport = () => {
    begun = true;
  };
  for (let made = 0; ; made++) {
    try {
      await launchRanks({ ...(begun ? again : launch), onFirstReport });
      return;
    } catch (error) {
      if (!(error instanceof RankError) || !error.mayRecover || made >= restarts) throw error;
      const from = begun ? "the newest checkpoint" : "the beginning";
      log.warn({ restart: made + 1, of: restarts }, `${error.message}; starting again from ${from}`);
    }
  }
}

/**
 * Runs the ranks to their end.
 * @throws RankError naming the rank that failed, the step it was in and its log, once all processes are gone
 */
export async function launchRanks(launch: Launch): Promise<void> {
  mkdirSync(launch.folder, { recursive: true });
  const {
    count: nodes,
    index,
    address,
    port,
  } = launch.nodes ?? {
    count: 1,
    index: 0,
    address: "127.0.0.1",
    port: await freePort(),
  };
  const meeting = { world: nodes * launch.count, first: index * launch.count, address, port };
  const ranks = Array.from({ length: launch.count }, (_, local) => startRank(launch, local, meeting));
  const kill = (signal: NodeJS.Signals) => {
    for (const { child } of ranks) if (isAlive(child)) child.kill(signal);
  };
  const killAll = () => kill("SIGKILL");
  const signals = handOnSignals(kill);
  process.once("exit", killAll);
  try {
    const failed = await firstFailure(ranks);
    if (failed === undefined) return;
    if (complains(failed)) await within(saysFailed(failed) ? SAVING_MS : CAUSE_MS, ownFailure(ranks));
    const cause = causeOf(ranks, failed);
    kill("SIGTERM");
    await within(launch.graceMs ?? GRACE_MS, Promise.all(ranks.map(({ ended }) => ended)));
    killAll();
    await Promise.all(ranks.map(({ ended }) => ended));
    throw errorOf(cause, signals.wereReceived()); // also of a signal that came meanwhile
  } finally {
    signals.end();
    process.off("exit", killAll);
  }
}

function startRank(
  { program, args, count, folder, onFirstReport }: Launch,
  local: number,
  meeting: { world: number; first: number; address: string; port: number },
): Rank {
  const rank = meeting.first + local;
  const logFile = path.join(folder, `rank-${rank}.log`);
  // In a session of its own: the terminal's Ctrl-C reaches the launcher alone, which hands it on.
  const child = spawn(program, [...args], {
    stdio: ["ignore", "pipe", "pipe", "ipc"],
    detached: true,
    env: {
      ...process.env,
      GROVE_RANK: String(rank),
      GROVE_WORLD_SIZE: String(meeting.world),
      GROVE_LOCAL_RANK: String(local),
      GROVE_LOCAL_WORLD_SIZE: String(count),
      GROVE_MASTER_ADDR: meeting.address,
      GROVE_MASTER_PORT: String(meeting.port),
      [LAUNCHER]: String(process.pid),
    },
  });
  const started: Rank = {
    rank,
    child,
    logFile,
    tail: [],
    step: undefined,
    ended: Promise.resolve(),
    failure: undefined,
  };
  child.on("message", (report) => {
    started.step = (report as RankReport).step ?? started.step;
    if (rank === 0) onFirstReport?.();
  });
  keepOutput(started);
  started.ended = new Promise((resolve) => {
    child.once("error", (error) => {
      started.failure = `could not be started: ${error.message}`;
      resolve();
    });
    child.once("close", (code, signal) => {
      if (signal !== null) started.failure ??= `was ended by ${signal}`;
      else if (code !== 0) started.failure ??= `ended with status ${code}`;
      resolve();
    });
  });
  return started;
}

/** Output goes to the rank's file, and rank 0's to the terminal: its log lines through this process's logger, so that they look as ever. */
function keepOutput({ rank, child, logFile, tail }: Rank): void {
  const file = openSync(logFile, "a"); // what an earlier attempt said may still be wanted
  const write = (line: string) => {
    try {
      writeSync(file, `${line}\n`);
    } catch {
      // A full disk is for the ranks to complain of, where it matters: not for their launcher to die of.
    }
  };
  child.once("close", () => closeSync(file)); // after the last line
  if (child.stdout !== null)
    createInterface({ input: child.stdout }).on("line", (line) => {
      write(line);
      if (rank === 0) process.stdout.write(`${line}\n`);
    });
  let failing = false; // its last words belong to the error of the launcher, not also to the terminal
  if (child.stderr !== null)
    createInterface({ input: child.stderr }).on("line", (line) => {
      write(line);
      if (line.startsWith("error [")) {
        failing = true;
        tail.length = 0;
      }
      tail.push(line);
      if (tail.length > TAIL_LINES) tail.shift();
      if (rank === 0 && !failing && !relog(line)) process.stderr.write(`${line}\n`);
    });
}

/** Resolves when `event` does, or after so long. No timer is left behind, which the launcher's process would stay for. */
async function within(ms: number, event: Promise<unknown>): Promise<void> {
  const over = new AbortController();
  await Promise.race([event, sleep(ms, undefined, { signal: over.signal }).catch(() => {})]);
  over.abort();
}

/** The first rank that ends otherwise than well; undefined when all end well. */
function firstFailure(ranks: readonly Rank[]): Promise<Rank | undefined> {
  return new Promise((resolve) => {
    for (const one of ranks) one.ended.then(() => one.failure !== undefined && resolve(one));
    Promise.all(ranks.map(({ ended }) => ended)).then(() =>
      resolve(ranks.find(({ failure }) => failure !== undefined)),
    );
  });
}

/** Whether a rank failed, as far as it knows, because another one had, or had not come. */
function complains({ tail }: Rank): boolean {
  return tail[0]?.startsWith("error [COLLECTIVE]") === true;
}

/** Resolves when a rank fails that does not complain of another, or all have ended. */
function ownFailure(ranks: readonly Rank[]): Promise<void> {
  return new Promise((resolve) => {
    for (const one of ranks) one.ended.then(() => one.failure !== undefined && !complains(one) && resolve());
    Promise.all(ranks.map(({ ended }) => ended)).then(() => resolve());
  });
}

/** Whether a rank complains of one that has said so itself. */
function saysFailed({ tail }: Rank): boolean {
  return /: rank \d+ has failed, /.test(tail[0] ?? "");
}

/** Of the ranks that have failed so far the one that did not fail because another had. */
function causeOf(ranks: readonly Rank[], first: Rank): Rank {
  const failed = [first, ...ranks.filter((one) => one !== first && one.failure !== undefined)];
  return failed.find((one) => !complains(one)) ?? first;
}

function errorOf({ rank, failure, step, logFile, tail, child }: Rank, wasStopped: boolean): RankError {
  const message = tail[0]?.startsWith("error [") === true ? tail.join("\n") : "";
  const mayRecover = !wasStopped && (step !== undefined || child.signalCode !== null);
  const making = step === undefined ? undefined : step + 1;
  return new RankError(rank, failure as string, making, logFile, message, mayRecover);
}

/** Hands the first SIGINT or SIGTERM on to the ranks, which end after their step; another one, a second later, ends them at once. */
function handOnSignals(kill: (signal: NodeJS.Signals) => void): { wereReceived: () => boolean; end: () => void } {
  let first: number | null = null;
  const onSignal = (signal: NodeJS.Signals) => {
    if (first === null) {
      first = performance.now();
      kill(signal === "SIGHUP" ? "SIGTERM" : signal);
    } else if (performance.now() - first > 1000) kill("SIGKILL");
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, onSignal);
  const end = () => {
    for (const signal of signals) process.off(signal, onSignal);
  };
  return { wereReceived: () => first !== null, end };
}

/** Writes a log line of another process through this process's logger; false for a line that is none. */
function relog(line: string): boolean {
  try {
    const { level, msg, time: _time, ...fields } = JSON.parse(line) as { level: number; msg: string; time: unknown };
    log[log.levels.labels[level] as "info"].call(log, fields, msg);
    return true;
  } catch {
    return false;
  }
}

function isAlive({ pid, exitCode, signalCode }: ChildProcess): boolean {
  return pid !== undefined && exitCode === null && signalCode === null;
}

/** A port of this machine that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}
