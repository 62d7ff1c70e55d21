/** Results of evaluations as an aligned table and as a summary for other programs. */

import type { ConsistencyTally } from "./consistency.ts";
import { wilsonInterval } from "./intervals.ts";
import { type PartTally, type Tally, walkParts } from "./parts.ts";
import { PUBLISHED, type PublishedBenchmark, type PublishedFigures, publishedPart } from "./published.ts";
import { alignTable, short } from "./table.ts";

export interface LevelResult extends PartTally {
  /** Questions without an answer, their media being unusable (data.onBadSample: skip); not in n. An unreadable record is no question. */
  skipped: number;
  /** With eval.consistency. */
  consistency?: ConsistencyTally;
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

/**
 * A table of every level and its parts: right / questions, accuracy, 95 % Wilson interval. Levels that `benchmarks` says are a published
 * benchmark have its figures beside them, whose sources follow the table. Names of up to 20 characters fit 80 columns, the longest 90.
 */
export function evalTable(results: EvalResults, benchmarks: Record<string, string | undefined> = {}): string {
  const published = Object.keys(results).flatMap((level) => benchmarkOf(benchmarks[level]) ?? []);
  const head = ["level", "right", "accuracy", "95 % interval"];
  const rows = [published.length > 0 ? [...head, "Vanilla*", "SFT*", "GRPO*"] : head];
  for (const [level, result] of Object.entries(results)) {
    const benchmark = benchmarkOf(benchmarks[level]);
    rows.push([short(level), ...tallyCells(result), ...publishedCells(benchmark?.all, benchmark)]);
    for (const { path, depth, tally } of walkParts(result.parts)) {
      const figures = benchmark && publishedPart(benchmark, path);
      const name = short(`${"  ".repeat(depth)}${path.at(-1)?.[1]}`);
      rows.push([name, ...tallyCells(tally), ...publishedCells(figures, benchmark)]);
    }
    if (result.skipped > 0) rows.push(["  skipped", String(result.skipped)]);
  }
  const notes = [...new Set(published.map(({ source }) => source))].map((source) => `* published: ${source}.`);
  for (const [level, { n, skipped }] of Object.entries(results)) {
    const whole = benchmarkOf(benchmarks[level])?.questions;
    if (whole !== undefined && n + skipped !== whole)
      notes.push(`${level}: ${n + skipped} questions here, ${whole} in the published set: not the same questions.`);
  }
  return [alignTable(rows), ...(notes.length > 0 ? ["", ...notes] : [])].join("\n");
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

function benchmarkOf(name: string | undefined): PublishedBenchmark | undefined {
  return name === undefined ? undefined : PUBLISHED[name];
}

function publishedCells(figures: PublishedFigures | undefined, benchmark: PublishedBenchmark | undefined): string[] {
  if (figures === undefined) return [];
  return [figures.vanilla, figures.sft, figures.grpo].map((percent) => percent.toFixed(benchmark?.decimals));
}

function tallyCells({ correct, n }: Tally): string[] {
  if (n === 0) return ["0/0", "-", "-"];
  const [low, high] = wilsonInterval(correct, n);
  return [
    `${correct}/${n}`,
    `${((100 * correct) / n).toFixed(1)} %`,
    `${(100 * low).toFixed(1)} - ${(100 * high).toFixed(1)} %`,
  ];
}
