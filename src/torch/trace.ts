/**
 * Traces: what the device ran and when, by libtorch's profiler (Kineto), written in Chrome's format: chrome://tracing and ui.perfetto.dev open them.
 * Recording slows the host down a little, and a lot with operators; without CUDA a trace of no operators is empty.
 */

import { readFileSync } from "node:fs";
import { addon } from "./addon.ts";
import { cudaAvailable, synchronize } from "./cuda.ts";
import { typedError } from "./native-error.ts";

/** One name's launches on the device. */
export interface TracedKernel {
  name: string;
  calls: number;
  seconds: number;
}

export interface TraceSummary {
  /** From the beginning of the recording until the device had done everything. */
  seconds: number;
  /** Of these, with a kernel, copy or fill under way on any stream. */
  busyS: number;
  /** Longest first. */
  kernels: TracedKernel[];
}

/**
 * Runs `body`, writes its trace to `file` and sums it up; the sum is null where the file could not be written whole (no room, no folder), since what
 * `body` did is worth more than its trace. One recording at a time.
 * @param options operators: also what the host calls, on the CPU the only thing there is to see
 * @throws NativeError when a recording is under way already
 */
export async function recordTrace<T>(
  file: string,
  body: () => T | Promise<T>,
  options: { operators?: boolean } = {},
): Promise<{ result: T; summary: TraceSummary | null }> {
  const attempt = (what: string, run: () => void) => {
    try {
      run();
    } catch (cause) {
      throw typedError(what, file, [], cause);
    }
  };
  synchronize();
  attempt("profileStart", () => addon.profileStart(cudaAvailable(), options.operators ?? !cudaAvailable()));
  const started = performance.now();
  let seconds = 0;
  let result: T;
  try {
    result = await body();
    synchronize();
    seconds = (performance.now() - started) / 1000;
  } finally {
    attempt("profileStop", () => addon.profileStop(file));
  }
  return { result, summary: summaryOf(file, seconds) };
}

function summaryOf(file: string, seconds: number): TraceSummary | null {
  try {
    return summarizeTrace(JSON.parse(readFileSync(file, "utf8")), seconds);
  } catch {
    return null;
  }
}

/** An event of Chrome's format, as far as it is read here; times in microseconds. */
interface TraceEvent {
  ph: string;
  cat?: string;
  name: string;
  ts: number;
  dur?: number;
}

const DEVICE_WORK = new Set(["kernel", "gpu_memcpy", "gpu_memset"]);

/** @param seconds what the recording took */
export function summarizeTrace(trace: { traceEvents: readonly TraceEvent[] }, seconds: number): TraceSummary {
  const work = trace.traceEvents
    .filter(({ ph, cat }) => ph === "X" && cat !== undefined && DEVICE_WORK.has(cat))
    .sort((a, b) => a.ts - b.ts);
  const kernels = new Map<string, TracedKernel>();
  let busy = 0;
  let end = Number.NEGATIVE_INFINITY;
  for (const { name, ts, dur = 0 } of work) {
    busy += Math.max(0, ts + dur - Math.max(ts, end));
    end = Math.max(end, ts + dur);
    const kernel = kernels.get(name) ?? { name, calls: 0, seconds: 0 };
    kernels.set(name, { name, calls: kernel.calls + 1, seconds: kernel.seconds + dur / 1e6 });
  }
  return { seconds, busyS: busy / 1e6, kernels: [...kernels.values()].sort((a, b) => b.seconds - a.seconds) };
}
