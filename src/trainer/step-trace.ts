/** Traces of the steps that trainer.traceSteps names: where a step's time goes, for whoever has to know. */

import path from "node:path";
import type { Config } from "../config/schema.ts";
import { log } from "../log.ts";
import { recordTrace } from "../torch/trace.ts";
import type { Metrics } from "../types.ts";

/**
 * Runs step number `step`, counted from 1. A step that is to be traced leaves trace-<step>.json in the run folder, for chrome://tracing, and says in
 * `trace/gpu_idle` which share of its time the device had nothing to do. Ranks other than the first write trace-<step>-rank-<n>.json.
 */
export async function tracedStep(
  config: Config,
  runDir: string,
  step: number,
  rank: number,
  run: () => Promise<Metrics>,
): Promise<Metrics> {
  if (!config.trainer.traceSteps.includes(step)) return run();
  const share = rank === 0 ? "" : `-rank-${rank}`;
  const file = path.join(runDir, `trace-${String(step).padStart(6, "0")}${share}.json`);
  const onGpu = config.device !== "cpu";
  const { result, summary } = await recordTrace(file, run, { operators: !onGpu });
  if (summary === null) {
    log.warn({ file }, "the trace of a step could not be written: is there room on the disk? The run goes on");
    return result;
  }
  const { seconds, busyS, kernels } = summary;
  log.info({ file, seconds, busyS, longest: kernels.slice(0, 10) }, "traced a step");
  return { ...result, ...(onGpu && { "trace/gpu_idle": 1 - busyS / seconds }) };
}
