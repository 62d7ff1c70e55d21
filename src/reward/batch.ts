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
  args: RewardArgs; // the same as modules and built-in functions get it
  step: RewardStep;
}

export function batchOf(groups: readonly ScoredGroup[], step: RewardStep): RewardBatch {
  const rows = groups.flatMap(({ prompt, completions }) => {
    return completions.map((completion) => ({ sample: prompt.sample, completion }));
  });
  return { rows, args: argsOf(rows), step };
}

/** An array per field of any record; undefined where a record lacks it. */
export function columnsOf(rows: readonly ScoredRow[]): Record<string, unknown[]> {
  const names = new Set(rows.flatMap(({ sample }) => Object.keys(sample.fields)));
  return Object.fromEntries([...names].map((name) => [name, rows.map(({ sample }) => sample.fields[name])]));
}

function argsOf(rows: readonly ScoredRow[]): RewardArgs {
  return {
    ...columnsOf(rows),
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
