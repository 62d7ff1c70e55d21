/**
 * A reward function that runs beside this thread, in a thread or a process of its own: it is asked one batch after the other, ended when it
 * hangs, and started again with the next call.
 */

import { RewardError } from "../errors.ts";
import { about, type RewardBatch } from "./batch.ts";
import type { RawAnswer, RewardSource } from "./source.ts";

/** What comes back from the thread or process: it is loaded, a call returned, or something threw. */
export type RunnerReply = { ready: true } | RawAnswer | { error: string };

/** What a thread or process tells while it lives. */
export interface RunnerEvents {
  reply(reply: RunnerReply): void;
  /** It has ended, or never began; nothing follows. */
  died(problem: string, cause?: unknown): void;
}

/** A running thread or process. It must not keep the trainer's process alive; a call's time limit does so while it is waited for. */
export interface Runner {
  /** Throws where the batch cannot be sent. */
  send(batch: RewardBatch): void;
  /** Ends it at once (a call has failed), or in good order. Resolves when it is gone. */
  end(how: "now" | "in order"): Promise<void>;
}

export interface RunnerOptions {
  name: string;
  /** The module or function, for messages and `details.path`. */
  place: string;
  timeoutS: number;
  startTimeoutS: number;
}

export abstract class RunnerReward implements RewardSource {
  readonly place: string;
  protected readonly options: RunnerOptions;
  #runner: Runner | null = null;
  #waiting: { done: (reply: RunnerReply) => void; fail: (error: RewardError) => void } | null = null;
  #diedIdle: RewardError | null = null;
  #lastCall: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(options: RunnerOptions) {
    this.options = options;
    this.place = options.place;
  }

  /** Starts the thread or process, which replies `ready` or an error by itself. */
  protected abstract launch(events: RunnerEvents): Runner;

  start(): Promise<void> {
    return this.#inTurn(async () => void (await this.#running()));
  }

  score(batch: RewardBatch): Promise<RawAnswer> {
    return this.#inTurn(() => this.#call(batch));
  }

  async close(): Promise<void> {
    this.#closed = true;
    const runner = this.#runner;
    this.#runner = null;
    this.#waiting?.fail(this.error("it was closed before it replied"));
    await runner?.end("in order");
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const call = this.#lastCall.then(work);
    this.#lastCall = call.catch(() => {});
    return call;
  }

  async #call(batch: RewardBatch): Promise<RawAnswer> {
    const died = this.#diedIdle;
    this.#diedIdle = null;
    if (died !== null) throw died; // the call after this one starts it again
    const runner = await this.#running();
    try {
      const { timeoutS } = this.options;
      const late = `no reply within ${timeoutS} s, the timeoutS of this reward, on ${about(batch)}`;
      const reply = await this.#reply(timeoutS, late, () => {
        try {
          runner.send(batch);
        } catch (cause) {
          throw this.error(`its arguments could not be sent: ${String(cause)}`, cause);
        }
      });
      if ("error" in reply) throw this.error(`it failed on ${about(batch)}: ${reply.error}`);
      if (!("values" in reply)) throw this.error("it answered a call with something else");
      return reply;
    } catch (cause) {
      await this.#drop(); // what is in an unknown state is never asked again
      throw cause;
    }
  }

  async #running(): Promise<Runner> {
    if (this.#closed) throw this.error("it was closed before it was asked");
    if (this.#runner !== null) return this.#runner;
    try {
      const { startTimeoutS } = this.options;
      const late = `it was not loaded within ${startTimeoutS} s, the startTimeoutS of this reward`;
      const reply = await this.#reply(startTimeoutS, late, () => {
        this.#runner = this.#launched();
      });
      if ("error" in reply) throw this.error(`it could not be loaded: ${reply.error}`);
      return this.#runner as unknown as Runner;
    } catch (cause) {
      await this.#drop();
      throw cause;
    }
  }

  #launched(): Runner {
    let alive = true;
    const runner = this.launch({
      reply: (reply) => {
        if (alive) this.#waiting?.done(reply);
      },
      died: (problem, cause) => {
        if (!alive) return; // it ends with an error and then exits: the first says more
        alive = false;
        if (this.#runner !== runner) return; // ended on purpose
        this.#runner = null;
        const error = this.error(problem, cause);
        if (this.#waiting !== null) this.#waiting.fail(error);
        else this.#diedIdle = error;
      },
    });
    return runner;
  }

  async #drop(): Promise<void> {
    const runner = this.#runner;
    this.#runner = null;
    await runner?.end("now");
  }

  /** Sends a request and waits for the reply, a failure or the time limit, whose timer alone keeps this process alive meanwhile. */
  async #reply(limitS: number, late: string, send: () => void): Promise<RunnerReply> {
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<RunnerReply>((done, fail) => {
        this.#waiting = { done, fail };
        timer = setTimeout(() => fail(this.error(late)), limitS * 1000);
        send();
      });
    } finally {
      clearTimeout(timer);
      this.#waiting = null;
    }
  }

  protected error(problem: string, cause?: unknown): RewardError {
    return new RewardError(this.options.name, `${this.place}: ${problem}`, { path: this.place }, cause);
  }
}
