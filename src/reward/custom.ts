/**
 * Reward functions of the user's own, run in a worker thread each: a function that hangs, loops or exits can be stopped, and the
 * training thread never waits on it without a limit.
 */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { ConfigError, RewardError } from "../errors.ts";
import type { RewardArgs } from "./rewards.ts";

/** What the worker answers: the module is loaded, a call returned, or something threw. */
export type WorkerReply = { ready: true } | { values: unknown } | { error: string };

export interface CustomRewardOptions {
  name: string;
  /** A module whose default export is `(args: RewardArgs) => Promise<(number | null)[]>`; relative paths start at the working directory. */
  path: string;
  /** Limit on loading the module, and on every call, in seconds. */
  timeoutS: number;
}

/** A reward function in a worker thread of its own, which starts with the first call. */
export class CustomReward {
  private readonly name: string;
  private readonly file: string;
  private readonly timeoutS: number;
  private worker: Promise<Worker> | null = null;

  /** Throws ConfigError if the module does not exist. */
  constructor(options: CustomRewardOptions) {
    this.name = options.name;
    this.file = resolve(options.path);
    this.timeoutS = options.timeoutS;
    if (!existsSync(this.file)) {
      throw new ConfigError(`reward "${options.name}": there is no module ${this.file}`, { path: this.file });
    }
  }

  /**
   * Scores a batch with one call. Returns whatever the function returned; `checkValues` (rewards.ts) judges it.
   * Throws RewardError if the module cannot be loaded, the function throws, its thread ends or the time limit passes.
   */
  async score(args: RewardArgs): Promise<unknown> {
    this.worker ??= this.start();
    const worker = await this.worker;
    const reply = await this.reply(worker, "call", () => worker.postMessage(args));
    if (!("values" in reply)) throw new RewardError(this.name, "the thread of the function answered out of turn");
    return reply.values;
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    const worker = await this.worker?.catch(() => null);
    this.worker = null;
    await worker?.terminate();
  }

  private async start(): Promise<Worker> {
    const worker = new Worker(workerFile(), { workerData: pathToFileURL(this.file).href, execArgv: loaderFlags() });
    await this.reply(worker, "load", () => {});
    return worker;
  }

  /** Sends a request and waits for its reply, its failure or the time limit. The thread keeps the process alive only meanwhile. */
  private async reply(worker: Worker, what: "load" | "call", send: () => void): Promise<WorkerReply> {
    const failed = what === "load" ? `could not load ${this.file}` : `the function in ${this.file} failed`;
    const listeners: (() => void)[] = [];
    worker.ref();
    try {
      return await new Promise<WorkerReply>((done, fail) => {
        const on = (event: string, listener: (value: never) => void) => {
          worker.once(event, listener);
          listeners.push(() => worker.off(event, listener));
        };
        on("message", (reply: WorkerReply) => {
          if ("error" in reply) fail(new RewardError(this.name, `${failed}: ${reply.error}`));
          else done(reply);
        });
        on("error", (cause: Error) => fail(new RewardError(this.name, `${failed}: ${cause.message}`, {}, cause)));
        on("exit", (code: number) => fail(new RewardError(this.name, `${failed}: it ended its thread (exit code ${code})`)));
        const timer = setTimeout(
          () => fail(new RewardError(this.name, `${failed}: no result within ${this.timeoutS} s (timeoutS of this reward)`)),
          this.timeoutS * 1000,
        );
        listeners.push(() => clearTimeout(timer));
        send();
      });
    } catch (cause) {
      this.worker = null; // a thread in an unknown state is never asked again
      await worker.terminate();
      if (cause instanceof RewardError) throw cause;
      throw new RewardError(this.name, `its arguments could not be sent to the worker: ${String(cause)}`, {}, cause);
    } finally {
      for (const off of listeners) off();
      worker.unref();
    }
  }
}

/** The thread's entry point: TypeScript in a checkout, JavaScript beside the bundled program. */
function workerFile(): URL {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return new URL(`./custom-worker.${extension}`, import.meta.url);
}

/** Lets the thread import TypeScript wherever tsx is installed; a bundle without it takes JavaScript modules only. */
function loaderFlags(): string[] {
  try {
    return ["--import", pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href];
  } catch {
    return [];
  }
}
