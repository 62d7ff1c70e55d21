/** Stages of a longer command, each done once: what is finished, with which knobs, is kept in small files. */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import path from "node:path";
import { duration } from "./progress.ts";

/** What a stage's work is told. */
export interface Stage {
  /** An earlier process began this stage with the same knobs and did not finish it. */
  begun: boolean;
}

interface StageRecord {
  key: string;
  done: boolean;
  seconds: number;
  result?: unknown;
}

export class Stages {
  /** Seconds of each finished stage, by name; skipped ones with the time they once took. */
  readonly seconds: Record<string, number> = {};
  #halted = false;
  #key = "";
  readonly #folder: string;
  readonly #say: (line: string) => void;

  constructor(folder: string, say: (line: string) => void) {
    this.#folder = folder;
    this.#say = say;
    mkdirSync(folder, { recursive: true });
  }

  /** True once a stage could not be finished; the stages after it do nothing. */
  get halted(): boolean {
    return this.#halted;
  }

  /** Called by a stage's work that stopped in an orderly way before its end. */
  halt(reason: string): void {
    this.#halted = true;
    this.#say(reason);
  }

  /**
   * Runs a stage, or returns what it returned before if it is done with the same knobs and so were all stages before it.
   * The result must survive JSON. Returns undefined when an earlier stage, or this one, was halted.
   */
  async run<T>(name: string, knobs: unknown, work: (stage: Stage) => Promise<T>): Promise<T | undefined> {
    if (this.#halted) return undefined;
    this.#key = createHash("sha256")
      .update(JSON.stringify([this.#key, name, knobs]))
      .digest("hex");
    const file = path.join(this.#folder, `${name.replaceAll(" ", "-")}.json`);
    const before = readRecord(file);
    const same = before?.key === this.#key;
    if (same && before.done) {
      this.#say(`${name}: done already`);
      this.seconds[name] = before.seconds;
      return before.result as T;
    }
    const spent = same ? before.seconds : 0;
    this.#say(`${name}: ${same ? "going on" : "starting"}`);
    write(file, { key: this.#key, done: false, seconds: spent });
    const start = performance.now();
    const result = await work({ begun: same });
    const seconds = spent + (performance.now() - start) / 1000;
    write(file, { key: this.#key, done: !this.#halted, seconds, result });
    if (this.#halted) return undefined;
    this.seconds[name] = seconds;
    this.#say(`${name}: ${duration(seconds)}`);
    return result;
  }
}

function readRecord(file: string): StageRecord | undefined {
  if (!existsSync(file)) return undefined;
  try {
    return JSON.parse(readFileSync(file, "utf8")) as StageRecord;
  } catch {
    return undefined; // damaged: the stage is run again
  }
}

function write(file: string, record: StageRecord): void {
  writeFileSync(`${file}.tmp`, `${JSON.stringify(record, null, 2)}\n`);
  renameSync(`${file}.tmp`, file);
}
