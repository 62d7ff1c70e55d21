import { beginOperation } from "../distributed/operation.ts";
import type { Metrics, RolloutGroup } from "../types.ts";

/** Adds up wall-clock seconds by name. */
export class StopWatch {
  readonly #seconds: Record<string, number> = {};
  readonly #start = performance.now();
  readonly #settle: () => void;

  /** `settle` waits for work that runs on after a call, as a GPU's does, so that each part is charged for its own. */
  constructor(settle: () => void = () => {}) {
    this.#settle = settle;
  }

  /** Runs `work` and adds its duration to `name`. */
  async time<T>(name: string, work: () => T | Promise<T>): Promise<T> {
    beginOperation(name);
    const start = performance.now();
    try {
      const result = await work();
      this.#settle();
      return result;
    } finally {
      this.#seconds[name] = this.seconds(name) + (performance.now() - start) / 1000;
    }
  }

  seconds(name: string): number {
    return this.#seconds[name] ?? 0;
  }

  /** `time/<name>_s` of everything timed so far, and `time/step_s` since the watch was made. */
  metrics(): Metrics {
    const times = Object.entries(this.#seconds).map(([name, seconds]) => [`time/${name}_s`, seconds] as const);
    return { ...Object.fromEntries(times), "time/step_s": (performance.now() - this.#start) / 1000 };
  }
}

/** What the completions of a step look like: lengths in tokens, the share that ran into the limit on new tokens, entropy per token in nats, tokens per second. */
export function rolloutMetrics(groups: readonly RolloutGroup[], seconds: number): Metrics {
  const completions = groups.flatMap((group) => group.completions);
  const lengths = completions.map((completion) => completion.ids.length);
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  const entropy = completions.reduce((sum, { entropies }) => sum + entropies.reduce((a, b) => a + b, 0), 0);
  const promptTokens = groups.reduce((sum, group) => sum + group.prompt.inputIds.length, 0);
  return {
    "rollout/length_mean": tokens / completions.length,
    "rollout/length_max": Math.max(...lengths),
    "rollout/truncated_frac": completions.filter(({ finish }) => finish === "length").length / completions.length,
    "rollout/entropy": entropy / tokens,
    "rollout/tokens_per_s": tokens / seconds,
    "data/prompt_tokens_mean": promptTokens / groups.length,
  };
}

/** Those metrics whose names start with `prefix`. */
export function pickMetrics(metrics: Metrics, prefix: string): Metrics {
  return Object.fromEntries(Object.entries(metrics).filter(([name]) => name.startsWith(prefix)));
}

/** The first metric that is not a finite number, or undefined. */
export function firstNonFinite(metrics: Metrics): [name: string, value: number] | undefined {
  return Object.entries(metrics).find(([, value]) => !Number.isFinite(value));
}

/** Seconds until the run ends, from the mean duration of the latest steps. */
export class Eta {
  readonly #durations: number[] = [];
  #last = performance.now();

  /** To be called after every step; returns the estimate for `remaining` further steps. */
  tick(remaining: number): number {
    const now = performance.now();
    this.#durations.push((now - this.#last) / 1000);
    this.#last = now;
    if (this.#durations.length > 20) this.#durations.shift();
    return (this.#durations.reduce((sum, seconds) => sum + seconds, 0) / this.#durations.length) * remaining;
  }
}
