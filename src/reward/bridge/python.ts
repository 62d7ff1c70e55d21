/** Python reward functions with TRL's signature, run by serve.py in a child process each, which speaks lines of JSON over stdin and stdout. */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { ConfigError } from "../../errors.ts";
import { log } from "../../log.ts";
import { eachLine } from "../lines.ts";
import { type Runner, type RunnerEvents, RunnerReward } from "../runner.ts";
import { parseReply, requestOf } from "./wire.ts";

const SERVE = fileURLToPath(new URL("./serve.py", import.meta.url));
const IN_ORDER_MS = 2000; // for a process that is asked to end: its own clean-up
const LAST_WORDS_MS = 200; // for what a process that has ended leaves in its pipes
const TAIL_LINES = 20;

export interface PythonRewardOptions {
  name: string;
  /** `file.py:function`, the file relative to the working directory, or `package.module:function`. */
  python: string;
  interpreter: string;
  timeoutS: number;
  startTimeoutS: number;
}

export class PythonReward extends RunnerReward {
  readonly #python: PythonRewardOptions;
  readonly #spec: string;

  /** Throws ConfigError if the file does not exist. */
  constructor(options: PythonRewardOptions) {
    const colon = options.python.lastIndexOf(":");
    const where = options.python.slice(0, colon);
    const file = where.endsWith(".py") ? resolve(where) : null;
    const spec = file === null ? options.python : `${file}${options.python.slice(colon)}`;
    super({ ...options, place: spec });
    this.#python = options;
    this.#spec = spec;
    if (file !== null && !existsSync(file))
      throw new ConfigError(`reward "${options.name}": there is no file ${file}`, { path: file });
  }

  protected launch({ reply, died }: RunnerEvents): Runner {
    const { name, interpreter } = this.#python;
    // A session of its own: Ctrl-C is for the trainer, and what the function has started ends with it.
    const child = spawn(interpreter, ["-u", SERVE, "--stdio", this.#spec], {
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    const said: string[] = [];
    eachLine(child.stderr, (line) => {
      log.info({ reward: name }, line);
      if (said.push(line) > TAIL_LINES) said.shift();
    });
    eachLine(child.stdout, (line) => {
      try {
        reply(parseReply(line));
      } catch (cause) {
        reply({ error: `its process wrote no reply: ${String(cause)}` });
      }
    });
    child.stdin.on("error", () => {}); // it has ended, and its exit says why
    child.on("error", (cause) => {
      died(`the program ${interpreter} cannot be started: ${cause.message}; set interpreter to a python3`, cause);
    });
    const gone = new Promise<void>((done) => {
      child.on("error", () => done());
      child.on("exit", (code, signal) => {
        endGroup(child); // processes of its own
        const how =
          signal === null ? `exit code ${code}` : `${signal}${signal === "SIGKILL" ? ", perhaps for memory" : ""}`;
        setTimeout(() => {
          died(`its process ended (${how})${said.length === 0 ? "" : `\n${said.join("\n")}`}`);
          done();
        }, LAST_WORDS_MS);
      });
    });
    child.unref();
    for (const pipe of [child.stdin, child.stdout, child.stderr]) (pipe as unknown as { unref?(): void }).unref?.();
    return {
      send: (batch) => void child.stdin.write(`${JSON.stringify(requestOf(batch))}\n`),
      end: async (how) => {
        child.ref();
        const late = setTimeout(() => endGroup(child), how === "now" ? 0 : IN_ORDER_MS);
        child.stdin.end();
        await gone;
        clearTimeout(late);
      },
    };
  }
}

/** Kills the process and all that it has started. */
function endGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // there is none left
  }
}
