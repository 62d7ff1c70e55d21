/** How often an evaluation's answers follow from their reasoning: figures of eval.consistency, from the files of answers alone. */

import { type Consistency, consistencyOf, optionsIn } from "../reward/consistency.ts";
import type { EvalRecord } from "./answers.ts";
import { alignTable, short } from "./table.ts";

export type ConsistencyCounts = Record<Consistency, number>;

export interface ConsistencyTally {
  all: ConsistencyCounts;
  /** Of the answers that are right. */
  right: ConsistencyCounts;
}

export function recordConsistency({ problem, response }: Pick<EvalRecord, "problem" | "response">): Consistency {
  return consistencyOf(response, optionsIn(problem));
}

export function tallyConsistency(records: Iterable<EvalRecord>): ConsistencyTally {
  const tally = emptyConsistency();
  for (const record of records) {
    const verdict = recordConsistency(record);
    tally.all[verdict]++;
    if (record.reward === 1) tally.right[verdict]++;
  }
  return tally;
}

export function emptyConsistency(): ConsistencyTally {
  const none = () => ({ consistent: 0, inconsistent: 0, undecided: 0 });
  return { all: none(), right: none() };
}

export function addConsistency(sum: ConsistencyTally, other: ConsistencyTally): void {
  for (const which of ["all", "right"] as const)
    for (const verdict of ["consistent", "inconsistent", "undecided"] as const)
      sum[which][verdict] += other[which][verdict];
}

/** The share of answers that their reasoning names; where it cannot be told, it does not. Null without answers. */
export function consistencyShare({ consistent, inconsistent, undecided }: ConsistencyCounts): number | null {
  const n = consistent + inconsistent + undecided;
  return n === 0 ? null : consistent / n;
}

/** A table of levels: of all answers and of the right ones, how many follow from their reasoning. */
export function consistencyTable(levels: Readonly<Record<string, ConsistencyTally>>): string {
  const cells = (counts: ConsistencyCounts) => {
    const share = consistencyShare(counts);
    return [
      share === null ? "-" : `${(100 * share).toFixed(1)} %`,
      String(counts.inconsistent),
      String(counts.undecided),
    ];
  };
  const head = ["level", "consistent", "not", "undecided", "of right ones", "not", "undecided"];
  const rows = Object.entries(levels).map(([level, { all, right }]) => [short(level), ...cells(all), ...cells(right)]);
  return alignTable([head, ...rows]);
}
