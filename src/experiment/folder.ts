/** The folder of an experiment: one process at a time, one experiment for good. */

import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.ts";
import { changedSettings } from "../eval/settings.ts";
import { replaceFile } from "../trainer/files.ts";

/** What decides the results; kept beside them, and held against what a later process wants to go on with. */
const SETTINGS = "experiment.json";
const LOCK = "lock";
const JOURNAL = "journal.jsonl";

/** What an experiment leaves in its folder, and one that overwrites it removes. */
const OWN_ENTRY =
  /^(experiment\.json|journal\.jsonl|best\.yaml|results\.json|report\.html|(intervals|against|curves)\.svg|(trial|variant)-.+)$/;

export interface ExperimentFolder extends Disposable {
  dir: string;
  journalFile: string;
}

/**
 * Takes the folder. One that holds an experiment is gone on with if it has the same settings.
 * @throws ConfigError where another process has it, it holds another experiment and `overwrite` is not set, or something else altogether
 */
export function openFolder(dir: string, settings: unknown, { overwrite = false } = {}): ExperimentFolder {
  mkdirSync(dir, { recursive: true });
  const release = lock(path.join(dir, LOCK));
  try {
    const file = path.join(dir, SETTINGS);
    if (overwrite) empty(dir);
    if (existsSync(file)) {
      const changes = changedSettings(JSON.parse(readFileSync(file, "utf8")), settings);
      if (changes.length > 0) {
        const shown = changes.slice(0, 6).map((change) => `\n  ${change}`);
        throw new ConfigError(
          `runDir: ${dir} holds an experiment with other settings; set another runDir or --overwrite${shown.join("")}`,
        );
      }
    } else {
      if (existsSync(path.join(dir, "metrics.jsonl")))
        throw new ConfigError(`runDir: ${dir} is the folder of a training run; set another runDir`);
      replaceFile(file, `${JSON.stringify(settings, null, 2)}\n`);
    }
  } catch (error) {
    release();
    throw error;
  }
  return { dir, journalFile: path.join(dir, JOURNAL), [Symbol.dispose]: release };
}

function empty(dir: string): void {
  for (const name of readdirSync(dir)) {
    if (OWN_ENTRY.test(name)) rmSync(path.join(dir, name), { recursive: true });
  }
}

/** Takes a lock file, also one that a process left which is no more. */
function lock(file: string): () => void {
  for (let attempt = 0; ; attempt++) {
    try {
      const descriptor = openSync(file, "wx");
      writeSync(descriptor, String(process.pid));
      closeSync(descriptor);
      return () => rmSync(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST" || attempt > 2) throw error;
      const owner = Number(readFileSync(file, "utf8"));
      if (owner !== process.pid && owner > 0 && isAlive(owner))
        throw new ConfigError(
          `runDir: process ${owner} is at work in ${path.dirname(file)}; wait for it, or set another runDir`,
        );
      rmSync(file, { force: true });
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
