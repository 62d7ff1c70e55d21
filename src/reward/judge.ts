/** Whether what a reward function returned can be used, and what counts in the place of what cannot. */

import { inspect } from "node:util";
import type { RewardFunctionConfig } from "../config/rewards.ts";
import { RewardError } from "../errors.ts";
import { log } from "../log.ts";
import { about, type RewardBatch } from "./batch.ts";
import type { RawAnswer } from "./source.ts";

export interface Judge {
  name: string;
  /** Module, Python function or address; undefined of what is built in. */
  place?: string;
  onError: RewardFunctionConfig["onError"];
}

/** What counts of a function for a batch of N completions. */
export interface Judged {
  values: (number | null)[]; // [N], finite; null where it does not apply
  failed: boolean[]; // [N], where a value stands in for one that could not be used
  metrics: Record<string, number>;
  columns: Record<string, unknown[]>; // [N] each
}

/**
 * Takes an array of N finite numbers and nulls as it is.
 * @param answer or why there is none
 * @throws RewardError naming function, place, sample and what came instead, where onError is stop
 */
export function judge(by: Judge, answer: RawAnswer | RewardError, batch: RewardBatch): Judged {
  const count = batch.rows.length;
  const whole = answer instanceof RewardError ? answer : wholeProblem(by, answer.values, batch);
  const problems = Array.from({ length: count }, (_, i) => whole ?? problemOf(by, answer as RawAnswer, i, batch));
  const failed = problems.map((problem) => problem !== null);
  const first = problems.find((problem) => problem !== null);
  if (first && by.onError === "stop") throw first;
  if (first) {
    const completions = failed.filter(Boolean).length;
    const counts = by.onError === "zero" ? "0" : "as not applicable";
    log.warn(
      { reward: by.name, completions, of: count, problem: first.message },
      `a reward failed and counts ${counts}`,
    );
  }
  const { values, metrics = {}, columns = {} } = whole === null ? (answer as RawAnswer) : { values: [] };
  return {
    values: problems.map((problem, i) => {
      if (problem === null) return (values as (number | null)[])[i] as number | null;
      return by.onError === "zero" ? 0 : null;
    }),
    failed,
    metrics: Object.fromEntries(
      Object.entries(metrics).filter((entry): entry is [string, number] => Number.isFinite(entry[1])),
    ),
    columns: columnsOf(by, columns, count),
  };
}

function wholeProblem(by: Judge, values: unknown, { rows }: RewardBatch): RewardError | null {
  const count = rows.length;
  if (Array.isArray(values) && values.length === count) return null;
  const got = Array.isArray(values) ? String(values.length) : shown(values);
  const expected = Array.isArray(values) ? `${count} numbers, one per completion` : `an array of ${count} numbers`;
  return rewardError(by, `expected ${expected}, got ${got}, for ${about({ rows })}`, {});
}

/** By index: a hole in a sparse array must not pass as "nothing to check". */
function problemOf(by: Judge, { values, errors }: RawAnswer, i: number, { rows }: RewardBatch): RewardError | null {
  const sampleId = rows[i]?.sample.id;
  const of = `completion ${i} (sample ${sampleId})`;
  const fields = { completion: i, sampleId };
  const thrown = errors?.[i];
  if (typeof thrown === "string") return rewardError(by, `failed on ${of}: ${thrown}`, fields);
  const value: unknown = (values as unknown[])[i];
  if (value === null || (typeof value === "number" && Number.isFinite(value))) return null;
  return rewardError(by, `expected a finite number or null for ${of}, got ${shown(value)}`, fields);
}

function columnsOf(by: Judge, columns: Record<string, unknown>, count: number): Record<string, unknown[]> {
  const fitting = Object.entries(columns).filter(([column, values]) => {
    if (Array.isArray(values) && values.length === count) return true;
    const got = Array.isArray(values) ? `${values.length} values` : shown(values);
    log.warn(
      { reward: by.name, column, expected: count, got },
      "a logged column does not fit its completions: left out",
    );
    return false;
  });
  return Object.fromEntries(fitting) as Record<string, unknown[]>;
}

function rewardError(by: Judge, problem: string, details: Record<string, unknown>): RewardError {
  const { name, place } = by;
  return new RewardError(name, place === undefined ? problem : `${place}: ${problem}`, { path: place, ...details });
}

/** A value as an error shows it; what Python returned comes with a text of its own. */
function shown(value: unknown): string {
  if (typeof value === "object" && value !== null && typeof (value as { got?: unknown }).got === "string")
    return (value as { got: string }).got;
  if (value === undefined || typeof value === "number") return String(value);
  const text = inspect(value, { depth: 1, breakLength: Number.POSITIVE_INFINITY, maxStringLength: 120 });
  return `${text.length > 200 ? `${text.slice(0, 200)}...` : text} (${Array.isArray(value) ? "array" : typeof value})`;
}
