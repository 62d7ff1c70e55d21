/** Which knobs have to be alike: among the sessions of a run, and among the ranks of a job. */

import { type Config, configSchema } from "../config/schema.ts";

/** Knobs that may differ between the sessions of a run without making it another run. */
const FREE_KNOBS = [
  /^(device|threads|runDir)$/,
  /^data\.(workers|prefetch|cacheDir|cacheGib|eval\..*)$/,
  /^(eval|rendered|tinyModel|distributed)\./,
  /^trainer\.(saveEvery|saveFinal|keepLast|keepBest|bestMetric|bestGoal|evalEvery|evalLimit|logCompletions)$/,
  /^trainer\.traceSteps/,
  /^(model\.recompute|optimizer\.offload)$/, // change no result
  /^rewards\.\d+\.(timeoutS|startTimeoutS|retries|memoryMib|interpreter)$/,
];

/** Knobs that may differ among the ranks of a job: what they share the machines for, and what leads to no other collective. */
const OWN_KNOBS = [
  /^(device|threads|runDir)$/,
  /^data\.(workers|prefetch|cacheDir|cacheGib)$/,
  /^distributed\.(?!shard)/,
  /^trainer\.traceSteps/,
  /^(model\.recompute|optimizer\.offload)$/,
  /^rewards\.\d+\.(timeoutS|startTimeoutS|retries|memoryMib|interpreter)$/,
];

/** The knobs that all ranks of a job have alike. */
export function sharedKnobs(config: Config): Record<string, string> {
  return Object.fromEntries([...leaves(config)].filter(([knob]) => !OWN_KNOBS.some((own) => own.test(knob))));
}

/**
 * `optimizer.learningRate: 0.001 -> 0.002` for every knob in which two configs differ, free ones left out. A knob that there was not yet when `before` was
 * saved counts by its default.
 */
export function changedKnobs(before: Config, now: Config): string[] {
  const completed = configSchema.safeParse(before);
  const old = leaves(completed.success ? completed.data : before);
  const current = leaves(now);
  return [...new Set([...old.keys(), ...current.keys()])]
    .filter((knob) => old.get(knob) !== current.get(knob) && !FREE_KNOBS.some((free) => free.test(knob)))
    .map((knob) => `${knob}: ${old.get(knob) ?? "unset"} -> ${current.get(knob) ?? "unset"}`);
}

function leaves(value: unknown, prefix = ""): Map<string, string> {
  if (typeof value !== "object" || value === null) return new Map([[prefix, JSON.stringify(value)]]);
  return new Map(
    Object.entries(value).flatMap(([key, inner]) => [...leaves(inner, prefix === "" ? key : `${prefix}.${key}`)]),
  );
}
