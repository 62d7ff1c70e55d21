/**
 * Reward functions of the user's own, run in a worker thread each: a function that hangs, loops or exits can be stopped, and the
 * training thread never waits on it without a limit.
 */

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { ConfigError, invariant, RewardError } from "../errors.ts";
import type { RewardArgs } from "./reward-function.ts";

const WORKER = new URL("./custom-worker.mjs", import.meta.url);

/** What the worker answers: the module is loaded, a call returned, or something threw. */
export type WorkerReply = { ready: true } | { values: unknown } | { error: string };

export interface CustomRewardOptions {
  name: string;
  /** A module whose default export is `(args: RewardArgs) => Promise<(number | null)[]>`; relative paths start at the working directory. */
  path: string;
  /** Limit on loading the module, and on every call, in seconds. */
  timeoutS: number;
}

/** A reward function in a worker thread of its own, which starts with the first call. Calls are answered one after the other. */
export class CustomReward {
  private readonly name: string;
  private readonly file: string;
  private readonly timeoutS: number;
  private worker: Worker | null = null;
  private waiting: { done: (reply: WorkerReply) => void; fail: (error: RewardError) => void } | null = null;
  private diedIdle: RewardError | null = null;
  private lastCall: Promise<unknown> = Promise.resolve();

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
   * Scores a batch with one call. Returns whatever the function returned; rewards.ts judges it.
   * Throws RewardError if the module cannot be loaded, the function throws, its thread ends or the time limit passes.
   */
  score(args: RewardArgs): Promise<unknown> {
    const call = this.lastCall.then(() => this.call(args));
    this.lastCall = call.catch(() => {});
    return call;
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    const worker = this.worker;
    this.worker = null;
    await worker?.terminate();
  }

  private async call(args: RewardArgs): Promise<unknown> {
    if (this.diedIdle) throw this.diedIdle;
    try {
      this.worker ??= await this.start();
      const worker = this.worker;
      const reply = await this.reply(worker, () => worker.postMessage(args));
      if ("error" in reply) throw this.error(reply.error);
      invariant("values" in reply, "a reward worker answered a call with something else");
      return reply.values;
    } catch (cause) {
      await this.close(); // a thread in an unknown state is never asked again
      if (cause instanceof RewardError) throw cause;
      throw this.error(`its arguments could not be sent to its thread: ${String(cause)}`, cause);
    }
  }

  private async start(): Promise<Worker> {
    const worker = new Worker(WORKER, { workerData: pathToFileURL(this.file).href, execArgv: [] });
    this.worker = worker;
    const died = (error: RewardError) => {
      if (this.worker !== worker) return; // closed on purpose
      this.worker = null;
      if (this.waiting) this.waiting.fail(error);
      else this.diedIdle = error;
    };
    worker.on("message", (reply: WorkerReply) => this.waiting?.done(reply));
    worker.on("error", (cause) => died(this.error(cause instanceof Error ? cause.message : String(cause), cause)));
    worker.on("exit", (code) => died(this.error(`it ended its thread (exit code ${code})`)));
    const reply = await this.reply(worker, () => {});
    if ("error" in reply) throw this.error(`it could not be loaded: ${reply.error}`);
    return worker;
  }

  /** Sends a request and waits for the reply, a failure or the time limit. Only meanwhile does the thread keep the process alive. */
  private async reply(worker: Worker, send: () => void): Promise<WorkerReply> {
    let timer: NodeJS.Timeout | undefined;
    worker.ref();
    try {
      return await new Promise<WorkerReply>((done, fail) => {
        this.waiting = { done, fail };
        const late = this.error(`no reply within ${this.timeoutS} s, the timeoutS of this reward`);
        timer = setTimeout(() => fail(late), this.timeoutS * 1000);
        send();
      });
    } finally {
      clearTimeout(timer);
      this.waiting = null;
      worker.unref();
    }
  }

  private error(problem: string, cause?: unknown): RewardError {
    return new RewardError(this.name, `${this.file}: ${problem}`, { path: this.file }, cause);
  }
}
