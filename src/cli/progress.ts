/** Shows how a run goes: one line that is redrawn on a terminal, JSON log lines elsewhere (files, SLURM, Kubernetes). */

import cliProgress from "cli-progress";
import { log } from "../log.ts";
import type { Metrics } from "../types.ts";

export interface Tick {
  /** What is counted: "grpo", "eval L1", "videos". */
  label: string;
  done: number;
  total: number;
  /** Seconds left; default: from the pace since the first tick of this label. */
  etaS?: number | undefined;
  metrics?: Metrics | undefined;
}

/** Ticks that are not steps (videos, evaluation questions) are logged at most so often where there is no terminal. */
const LOG_INTERVAL_S = 15;

/** To be stopped, or disposed of, whatever happens: a line that is being redrawn keeps the process alive and the cursor hidden. */
export class Progress implements Disposable {
  readonly #bar: cliProgress.SingleBar | undefined;
  #label = "";
  #since = 0; // when the label's first tick came, ms
  #first = 0; // and what it had done
  #logged = Number.NEGATIVE_INFINITY;

  /** `terminal` defaults to whether standard error is one. */
  constructor({ terminal = process.stderr.isTTY === true }: { terminal?: boolean } = {}) {
    if (!terminal) return;
    const format = "{label} {bar} {value}/{total}  {summary}";
    this.#bar = new cliProgress.SingleBar({ format, barsize: 20, hideCursor: true, clearOnComplete: true, fps: 5 });
  }

  /** A step of a training run: one line a step. */
  step(tick: Tick): void {
    this.#show(tick, true);
  }

  /** Part of something that has many small parts. */
  part(tick: Tick): void {
    const now = performance.now() / 1000;
    const due = tick.done === tick.total || now - this.#logged >= LOG_INTERVAL_S;
    if (due) this.#logged = now;
    this.#show(tick, due);
  }

  /** Clears the line, so that what is printed next starts on a fresh one. */
  stop(): void {
    this.#bar?.stop();
    this.#label = "";
  }

  [Symbol.dispose](): void {
    this.stop();
  }

  #show({ label, done, total, etaS, metrics = {} }: Tick, logIt: boolean): void {
    const now = performance.now();
    if (label !== this.#label) {
      this.#since = now;
      this.#first = done;
      this.#bar?.stop();
      this.#bar?.start(total, done, { label, summary: "" });
      this.#label = label;
    }
    const paced = ((now - this.#since) / 1000 / Math.max(1, done - this.#first)) * (total - done);
    const eta = etaS ?? (done > this.#first || done === total ? paced : Number.NaN);
    const summary = [...summarize(metrics), `ETA ${duration(eta)}`].join("  ");
    if (this.#bar !== undefined) this.#bar.update(done, { label, summary });
    else if (logIt)
      log.info({ [label.split(" ")[0] as string]: done, total, ...metrics }, `${label} ${done}/${total}  ${summary}`);
  }
}

/** The few numbers worth a glance: reward, loss, KL, length, tokens a second, seconds a step. */
export function summarize(metrics: Metrics): string[] {
  const parts: [name: string, value: number | undefined, digits: number][] = [
    ["reward", metrics["reward/mean"], 3],
    ["loss", metrics["loss/total"] ?? metrics["loss/sft"], 4],
    ["KL", metrics["loss/kl"], 4],
    ["length", metrics["rollout/length_mean"], 1],
    ["tok/s", metrics["rollout/tokens_per_s"] ?? metrics["data/tokens_per_s"], 0],
    ["s/step", metrics["time/step_s"], 1],
  ];
  return parts.flatMap(([name, value, digits]) => (value === undefined ? [] : [`${name} ${value.toFixed(digits)}`]));
}

/** 3671 -> "1:01:11", 65 -> "1:05"; "?" when nobody knows. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const pad = (n: number) => String(n).padStart(2, "0");
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}
