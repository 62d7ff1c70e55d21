/** Reward functions behind HTTP: serve.py --http on another machine, or any server that speaks the same JSON (docs/rewards.md). */

import { type IncomingHttpHeaders, request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import { RewardError } from "../../errors.ts";
import { log } from "../../log.ts";
import { about, type RewardBatch } from "../batch.ts";
import type { RawAnswer, RewardSource } from "../source.ts";
import { parseReply, requestOf } from "./wire.ts";

const FIRST_PAUSE_MS = 500; // before the first retry; doubles

export interface HttpRewardOptions {
  name: string;
  url: string;
  /** Limits on the first contact and on a call, retries included. */
  startTimeoutS: number;
  timeoutS: number;
  retries: number;
}

interface Response {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

export class HttpReward implements RewardSource {
  readonly place: string;
  readonly #options: HttpRewardOptions;
  readonly #closing = new AbortController();
  #met = false;

  constructor(options: HttpRewardOptions) {
    this.#options = options;
    this.place = options.url;
  }

  /** Any reply to a GET will do, but that of a serve.py which has no such function. */
  async start(): Promise<void> {
    if (this.#met) return;
    const { status, headers, text } = await this.#send("GET", undefined, this.#options.startTimeoutS, "startTimeoutS");
    if (status === 404 && `${headers.server}`.startsWith("grove-rewards")) throw this.#error(errorIn(text) ?? text);
    this.#met = true;
  }

  async score(batch: RewardBatch): Promise<RawAnswer> {
    const body = this.#bodyOf(batch);
    const { status, text } = await this.#send("POST", body, this.#options.timeoutS, "timeoutS");
    const error = errorIn(text);
    if (error !== null) throw this.#error(`it failed on ${about(batch)}: ${error}`);
    if (status !== 200) throw this.#error(`answered with status ${status}: ${text.slice(0, 500)}`);
    try {
      const reply = parseReply(text);
      if ("values" in reply) return reply;
    } catch (cause) {
      throw this.#error(`its answer cannot be used: ${cause instanceof Error ? cause.message : cause}`, cause);
    }
    throw this.#error("its answer holds no rewards");
  }

  async close(): Promise<void> {
    this.#closing.abort();
  }

  #bodyOf(batch: RewardBatch): string {
    try {
      return JSON.stringify(requestOf(batch));
    } catch (cause) {
      throw this.#error(`its arguments could not be sent: ${String(cause)}`, cause);
    }
  }

  /** Sends until there is an answer: again where the connection fails or the server is not up to it just now. */
  async #send(method: "GET" | "POST", body: string | undefined, limitS: number, knob: string): Promise<Response> {
    const limit = AbortSignal.timeout(limitS * 1000);
    const signal = AbortSignal.any([limit, this.#closing.signal]);
    for (let attempt = 0; ; attempt++) {
      let problem: string;
      let cause: unknown;
      try {
        const response = await exchange(this.place, method, body, signal);
        if (![429, 502, 503, 504].includes(response.status)) return response;
        problem = `status ${response.status}`;
      } catch (error) {
        cause = error;
        problem = error instanceof Error ? ((error as NodeJS.ErrnoException).code ?? error.message) : String(error);
      }
      if (this.#closing.signal.aborted) throw this.#error("it was closed before it replied");
      if (!limit.aborted && attempt < this.#options.retries) {
        log.warn(
          { reward: this.#options.name, attempt: attempt + 1, problem },
          "no answer of a reward server: asking again",
        );
        await sleep(FIRST_PAUSE_MS * 2 ** attempt, undefined, { signal }).catch(() => {});
        if (!signal.aborted) continue;
      }
      if (limit.aborted) throw this.#error(`no reply within ${limitS} s, the ${knob} of this reward`, cause);
      throw this.#error(`no answer in ${attempt + 1} attempts: ${problem}`, cause);
    }
  }

  #error(problem: string, cause?: unknown): RewardError {
    return new RewardError(this.#options.name, `${this.place}: ${problem}`, { path: this.place }, cause);
  }
}

/** Not fetch: that gives up on a server that computes for more than five minutes. */
function exchange(url: string, method: string, body: string | undefined, signal: AbortSignal): Promise<Response> {
  return new Promise((done, fail) => {
    const headers =
      body === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
    const send = url.startsWith("https:") ? requestHttps : requestHttp;
    const request = send(url, { method, signal, headers }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", fail);
      response.on("end", () => {
        const { statusCode: status = 0, headers } = response;
        done({ status, headers, text: Buffer.concat(chunks).toString() });
      });
    });
    request.on("error", fail);
    request.end(body);
  });
}

/** The error that a server's JSON names; null where there is none. */
function errorIn(text: string): string | null {
  try {
    const { error } = JSON.parse(text) as { error?: unknown };
    return typeof error === "string" ? error : null;
  } catch {
    return null;
  }
}
