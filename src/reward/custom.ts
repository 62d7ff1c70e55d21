/**
 * Reward modules of the user's own, run in a worker thread each: a function that hangs, loops, exits or fills its heap can be stopped, and
 * the training thread never waits on it without a limit.
 */

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { PassThrough } from "node:stream";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { ConfigError } from "../errors.ts";
import { log } from "../log.ts";
import { eachLine } from "./lines.ts";
import { type Runner, type RunnerEvents, type RunnerReply, RunnerReward } from "./runner.ts";

const WORKER = new URL("./custom-worker.mjs", import.meta.url);

export interface CustomRewardOptions {
  name: string;
  /** A module whose default export is a RewardFunction or, by `call`, a CompletionRewardFunction; relative paths start at the working directory. */
  path: string;
  call: "batch" | "completion";
  timeoutS: number;
  startTimeoutS: number;
  /** Limit on the thread's JavaScript heap, MiB. */
  memoryMib: number;
}

/** A reward function in a worker thread of its own. */
export class CustomReward extends RunnerReward {
  readonly #file: string;
  readonly #custom: CustomRewardOptions;

  /** Throws ConfigError if the module does not exist. */
  constructor(options: CustomRewardOptions) {
    const file = resolve(options.path);
    super({ ...options, place: file });
    this.#file = file;
    this.#custom = options;
    if (!existsSync(file)) {
      throw new ConfigError(`reward "${options.name}": there is no module ${file}`, { path: file });
    }
  }

  protected launch({ reply, died }: RunnerEvents): Runner {
    const { name, call, memoryMib } = this.#custom;
    const worker = new Worker(WORKER, {
      workerData: { url: pathToFileURL(this.#file).href, call },
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: memoryMib },
    });
    const printed = new PassThrough();
    eachLine(printed, (line) => log.info({ reward: name }, line));
    worker.on("message", (message: RunnerReply | { printed: Uint8Array }) => {
      if ("printed" in message) printed.write(message.printed);
      else reply(message);
    });
    worker.on("error", (cause: NodeJS.ErrnoException) => {
      const full = cause?.code === "ERR_WORKER_OUT_OF_MEMORY";
      const problem = full ? `its heap is full: ${memoryMib} MiB, the memoryMib of this reward` : messageOf(cause);
      died(problem, cause);
    });
    worker.on("exit", (code) => {
      printed.end();
      died(`it ended its thread (exit code ${code})`);
    });
    worker.unref();
    return {
      send: ({ args, step }) => worker.postMessage({ args, step }),
      end: async () => void (await worker.terminate()),
    };
  }
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
