/** The number that a run counts by, from the lines of its metrics.jsonl. */

import { nearest } from "../config/nearest.ts";
import { ConfigError } from "../errors.ts";
import type { Metrics } from "../types.ts";
import type { Objective } from "./spec.ts";

export type Line = Metrics & { step: number };

/**
 * The mean of a metric over the `window` steps up to the last step, at most `at`, that has it; undefined where none has. An evaluation made
 * every 40 steps with a window of 10 therefore counts by its latest figure, a reward by the mean over ten batches.
 */
export function metricAt(
  lines: readonly Line[],
  { metric, window }: Pick<Objective, "metric" | "window">,
  at = Number.POSITIVE_INFINITY,
): number | undefined {
  // What is not finite is null in JSON: no number, rather than a 0.
  const having = lines.filter((line) => line.step <= at && typeof line[metric] === "number");
  const last = having.at(-1)?.step;
  if (last === undefined) return undefined;
  const values = having.filter(({ step }) => step > last - window).map((line) => line[metric] as number);
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Every metric by `metricAt`. */
export function metricsAt(lines: readonly Line[], window: number): Metrics {
  return Object.fromEntries(namesOf(lines).map((metric) => [metric, metricAt(lines, { metric, window }) as number]));
}

/** The metrics that have a number in some step. */
function namesOf(lines: readonly Line[]): string[] {
  const having = lines.flatMap((line) => Object.keys(line).filter((name) => typeof line[name] === "number"));
  return [...new Set(having)].filter((name) => name !== "step");
}

/** The error for a run that has no such metric: what it has instead. */
export function missingMetric(metric: string, lines: readonly Line[], where: string): ConfigError {
  const names = namesOf(lines).sort();
  const close = nearest(metric, names);
  const evaluated = metric.startsWith("eval/") && !names.some((name) => name.startsWith("eval/"));
  const hint = evaluated
    ? "; runs are evaluated where trainer.evalEvery and data.eval are set"
    : close === undefined
      ? `; there are ${names.join(", ")}`
      : `; did you mean ${close}?`;
  return new ConfigError(`${where} has no metric ${metric}${hint}`, { metric, suggestion: close });
}
