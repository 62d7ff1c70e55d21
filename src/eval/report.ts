/** Results of evaluations as an aligned table and as a summary for other programs. */

import { wilsonInterval } from "./intervals.ts";

/** How many of the questions of a level, or of a part of it, were answered right. */
export interface Tally {
  correct: number;
  n: number;
}

export interface LevelResult extends Tally {
  /** By a field of the records that names parts of the level: `domain` -> `Hobbies` -> tally. Empty where records have none. */
  parts: Record<string, Record<string, Tally>>;
  /** Records that could not be read and were skipped (data.onBadSample: skip); not in n. */
  skipped: number;
}

/** Level name (L1, L2, ...) -> result. */
export type EvalResults = Record<string, LevelResult>;

export interface Summary {
  accuracy: number;
  n: number;
  correct: number;
  /** Wilson 95 % interval of the accuracy. */
  low: number;
  high: number;
}

/** A table of every level and its parts: name, correct / questions, accuracy, 95 % interval. */
export function evalTable(results: EvalResults): string {
  const rows = [["level", "correct", "accuracy", "95 % interval"]];
  for (const [level, result] of Object.entries(results)) {
    rows.push([level, ...tallyCells(result)]);
    for (const [field, parts] of Object.entries(result.parts)) {
      for (const name of Object.keys(parts).sort()) {
        rows.push([`  ${field} ${name}`, ...tallyCells(parts[name] as Tally)]);
      }
    }
    if (result.skipped > 0) rows.push(["  skipped", String(result.skipped), "", ""]);
  }
  return alignTable(rows);
}

/** The figures of each level for a summary file: `{"L1": {"accuracy": 0.46, "n": 2432, ...}}`. */
export function summarize(results: EvalResults): Record<string, Summary> {
  return Object.fromEntries(
    Object.entries(results).map(([level, { correct, n }]) => {
      const [low, high] = wilsonInterval(correct, n);
      return [level, { accuracy: n === 0 ? 0 : correct / n, n, correct, low, high }];
    }),
  );
}

/** Lays cells out in columns, the first aligned to the left, the others to the right, with a rule under the head. */
export function alignTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  const lines = rows.map((row) =>
    widths
      .map((width, column) => (column === 0 ? (row[0] ?? "").padEnd(width) : (row[column] ?? "").padStart(width)))
      .join("  ")
      .trimEnd(),
  );
  lines.splice(1, 0, widths.map((width) => "-".repeat(width)).join("  "));
  return lines.join("\n");
}

function tallyCells({ correct, n }: Tally): string[] {
  const [low, high] = wilsonInterval(correct, n);
  return [`${correct}/${n}`, percent(correct, n), `${(100 * low).toFixed(1)} - ${(100 * high).toFixed(1)} %`];
}

function percent(correct: number, n: number): string {
  return n === 0 ? "-" : `${((100 * correct) / n).toFixed(1)} %`;
}
