/**
 * One logger for the process. It writes to standard error (pretty on a terminal, JSON elsewhere), so that standard output stays free
 * for results, and, once a run folder is known, also to its log.jsonl.
 */

import { closeSync, mkdirSync, openSync, writeSync } from "node:fs";
import path from "node:path";
import { isMainThread } from "node:worker_threads";
import pino from "pino";
import pretty from "pino-pretty";

export type Logger = pino.Logger;

/** On a terminal: returns the cursor and clears the line first, so that a message never lands inside the progress line. */
const CLEAR_LINE = "\r\x1b[K";

const toTerminal = terminalWriter();
const openFiles = new Map<string, number>(); // path of a log.jsonl -> file descriptor

/** The process's logger. Fields first, then the message: `log.info({ step }, "saved")`. Level: environment variable GROVE_LOG_LEVEL. */
export const log: Logger = pino(
  { level: process.env.GROVE_LOG_LEVEL ?? "info", base: isMainThread ? null : { thread: "worker" } },
  {
    write(line: string) {
      toTerminal(line);
      for (const file of openFiles.values()) writeSync(file, line);
    },
  },
);

/**
 * From now on every message also goes to `<runDir>/log.jsonl`, or another file there (appended, in the file before the call returns). Asking for the same
 * one again changes nothing. Returns a function that ends it.
 */
export function logToRunFolder(runDir: string, name = "log.jsonl"): () => void {
  const file = path.resolve(runDir, name);
  if (!openFiles.has(file)) {
    mkdirSync(path.dirname(file), { recursive: true });
    openFiles.set(file, openSync(file, "a"));
  }
  return () => {
    const descriptor = openFiles.get(file);
    if (descriptor === undefined) return;
    openFiles.delete(file);
    closeSync(descriptor);
  };
}

function terminalWriter(): (line: string) => void {
  if (!process.stderr.isTTY) return (line) => void process.stderr.write(line);
  const format = pretty.prettyFactory({ colorize: true, translateTime: "SYS:HH:MM:ss", ignore: "pid,hostname" });
  return (line) => void process.stderr.write(CLEAR_LINE + format(JSON.parse(line)));
}
