/** The completions of a step in the order in which every reward function sees them. */

import type { Completion, RewardNotes, Sample } from "../types.ts";
import { goldAnswer } from "./gold.ts";
import type { RewardArgs, RewardStep } from "./reward-function.ts";

export interface ScoredRow {
  sample: Sample;
  completion: Pick<Completion, "ids" | "text" | "finish">;
}

/** A question and its completions: of a RolloutGroup what rewards read and fill in. */
export interface ScoredGroup {
  prompt: { sample: Sample };
  completions: ScoredRow["completion"][];
  rewards: number[];
  rewardBreakdown: Record<string, number[]>;
  rewardNotes?: RewardNotes;
}

/** What is scored with one call of each function. */
export interface RewardBatch {
  rows: readonly ScoredRow[]; // [N], group by group
  columns: Record<string, unknown[]>; // [N] each, the records' fields by name; undefined where a record lacks one
  args: RewardArgs; // the same as modules and built-in functions get it
  step: RewardStep;
}

/** @param fields names that have a column even where no record of this batch has such a field: those of all records that may be asked */
export function batchOf(groups: readonly ScoredGroup[], step: RewardStep, fields: readonly string[] = []): RewardBatch {
  const rows = groups.flatMap(({ prompt, completions }) => {
    return completions.map((completion) => ({ sample: prompt.sample, completion }));
  });
  const columns = columnsOf(rows, [...fields, ...fieldNamesOf(groups.map(({ prompt }) => prompt.sample))]);
  return { rows, columns, args: argsOf(rows, columns), step };
}

/** The names of the fields that any of the records has. */
export function fieldNamesOf(samples: readonly Sample[]): string[] {
  const names = new Set<string>();
  for (const { fields } of samples) for (const name of Object.keys(fields)) names.add(name);
  return [...names];
}

function columnsOf(rows: readonly ScoredRow[], names: readonly string[]): Record<string, unknown[]> {
  return Object.fromEntries(names.map((name) => [name, rows.map(({ sample }) => sample.fields[name])]));
}

function argsOf(rows: readonly ScoredRow[], columns: Record<string, unknown[]>): RewardArgs {
  return {
    ...columns,
    prompts: rows.map(({ sample }) => sample.messages),
    completions: rows.map(({ completion }) => completion.text),
    completionMessages: rows.map(({ completion }) => [{ role: "assistant", content: completion.text }]),
    completionIds: rows.map(({ completion }) => completion.ids),
    solution: rows.map(({ sample }) => sample.solution),
    goldAnswer: rows.map(({ sample }) => goldAnswer(sample.solution)),
    id: rows.map(({ sample }) => sample.id),
    lengths: rows.map(({ completion }) => completion.ids.length),
    finish: rows.map(({ completion }) => completion.finish),
    recordPlace: rows.map(({ sample }) => sample.source),
  };
}

/** `16 completions of samples q1, q2, q3 and 5 more`, for messages. */
export function about({ rows }: Pick<RewardBatch, "rows">): string {
  const ids = [...new Set(rows.map(({ sample }) => sample.id))];
  const more = ids.length > 3 ? ` and ${ids.length - 3} more` : "";
  const completions = rows.length === 1 ? "1 completion" : `${rows.length} completions`;
  return `${completions} of sample${ids.length === 1 ? "" : "s"} ${ids.slice(0, 3).join(", ")}${more}`;
}
