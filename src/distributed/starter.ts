/**
 * Who has started this process, by the variables that it left. What a rank or a run of an experiment starts itself, such as a command in a reward
 * function, inherits them and is neither.
 */

import { readFileSync } from "node:fs";
import { type Place, readPlace } from "./environment.ts";

/** Set for ranks: the launcher's process id. */
export const LAUNCHER = "GROVE_LAUNCHER_PID";

/** The process that a variable names as the one that has started this one, also where that has ended meanwhile; undefined where it is inherited, or not set. */
export function starterOf(variable: string): number | undefined {
  const value = process.env[variable];
  if (value === undefined) return undefined;
  const pid = Number(value);
  return process.ppid === pid || !isAlive(pid) ? pid : undefined;
}

/** This process's place in a job; null where it has none of its own. */
export function ownPlace(): Place | null {
  const place = readPlace(process.env);
  const isInherited = process.env[LAUNCHER] !== undefined && starterOf(LAUNCHER) === undefined;
  return place?.startedBy === "grove --nproc" && isInherited ? null : place;
}

function isAlive(pid: number): boolean {
  try {
    return /^State:\s+[^ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
