/** A lock file that holds the owner's process id, so that two set-ups in one folder take turns and a killed one blocks nobody. */

import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync, writeSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** An owner writes its id at once: a lock without one that is older than this was left by a process that died, or found the disk full, meanwhile. */
const NAMELESS_MS = 5000;

/**
 * Runs `work` while holding the lock `file`. Waits for a living owner (calling `onWait(pid)` once), takes over from a dead one.
 * @template T
 * @param {string} file
 * @param {() => Promise<T> | T} work
 * @param {{ onWait?: (pid: number) => void, pollMs?: number }} [options]
 * @returns {Promise<T>}
 */
export async function withLock(file, work, { onWait, pollMs = 200 } = {}) {
  mkdirSync(path.dirname(file), { recursive: true });
  let waiting = false;
  while (!take(file)) {
    const owner = ownerOf(file);
    if (owner === undefined ? isOld(file) : !isAlive(owner)) removeStale(file, owner);
    else {
      if (!waiting && owner !== undefined) onWait?.(owner);
      waiting = true;
      await sleep(pollMs);
    }
  }
  const release = () => rmSync(file, { force: true });
  process.once("exit", release);
  try {
    return await work();
  } finally {
    process.removeListener("exit", release);
    release();
  }
}

function take(file) {
  try {
    const descriptor = openSync(file, "wx");
    writeSync(descriptor, String(process.pid));
    closeSync(descriptor);
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
}

function isOld(file) {
  const info = statSync(file, { throwIfNoEntry: false });
  return info !== undefined && Date.now() - info.mtimeMs > NAMELESS_MS;
}

/** The process id in the lock; undefined while its owner is still writing it, or when it has just been released. */
function ownerOf(file) {
  try {
    const pid = Number(readFileSync(file, "utf8"));
    return Number.isInteger(pid) && pid > 0 ? pid : undefined;
  } catch {
    return undefined;
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

/** Moves the lock aside before deleting it: of several waiters only one succeeds, and a lock taken in the meantime is put back. */
function removeStale(file, owner) {
  const aside = `${file}.${process.pid}.stale`;
  try {
    renameSync(file, aside);
  } catch {
    return;
  }
  if (ownerOf(aside) === owner) rmSync(aside, { force: true });
  else renameSync(aside, file);
}
