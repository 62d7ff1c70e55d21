/** What an ablation has found: for each metric a table of variants, with intervals and paired tests. */

import path from "node:path";
import type { EvalRecord } from "../eval/answers.ts";
import { compareRuns, type Run, readRun } from "../eval/compare.ts";
import { consistencyShare, recordConsistency, tallyConsistency } from "../eval/consistency.ts";
import { wilsonInterval } from "../eval/intervals.ts";
import { mcnemarExact, type PairedCounts, pairedDifference } from "../eval/paired.ts";
import { meanInterval, pairedMeans } from "../eval/student.ts";
import { readMetrics } from "../trainer/run-folder.ts";
import { evalFolder, type JobState } from "./ablation.ts";
import type { Ablation } from "./ablation-spec.ts";
import { type Line, metricAt, missingMetric } from "./objective.ts";

export type Interval = readonly [low: number, high: number];

/** A variant under one metric. */
export interface Row {
  variant: string;
  /** By seed, of runs that have finished. */
  values: Record<number, number>;
  mean: number;
  /** 95 %: Student's t over seeds; of one seed's accuracy Wilson's over its questions; else null. */
  interval: Interval | null;
  /** Against its base variant, on the seeds that both have; null for the base itself. */
  against: {
    base: string;
    difference: number;
    interval: Interval | null;
    /** Paired t test over seeds. */
    pSeeds: number | null;
    /** The same questions, seed by seed: Newcombe's interval and McNemar's exact test; null for metrics that are no answers. */
    questions: { n: number; low: number; high: number; p: number } | null;
  } | null;
}

export interface MetricTable {
  metric: string;
  rows: Row[];
}

/** A table for each level's accuracy, where models were evaluated, and each metric that was asked for. */
export function ablationTables(ablation: Ablation, jobs: readonly JobState[]): MetricTable[] {
  const done = jobs.filter(({ status }) => status === "finished");
  const levels = ablation.evaluate
    ? [...new Set(ablation.jobs.flatMap(({ config }) => Object.keys(config.data.eval)))]
    : [];
  const answers = new Map(done.map((state) => [state, ablation.evaluate ? readRun(evalFolder(state.folder)) : {}]));
  const ofLevels = levels.map((level) => {
    const tallies = done.flatMap((state) => {
      const records = [...(answers.get(state)?.[level]?.values() ?? [])];
      if (records.length === 0) return [];
      const correct = records.filter(({ reward }) => reward === 1).length;
      return [{ state, value: correct / records.length, wilson: wilsonInterval(correct, records.length) }];
    });
    const counts = (a: JobState, b: JobState) => {
      const [one, other] = [answers.get(a)?.[level], answers.get(b)?.[level]];
      if (one === undefined || other === undefined) return undefined;
      return compareRuns({ [level]: one }, { [level]: other }).rows.find(({ depth }) => depth === 0);
    };
    return { metric: `accuracy ${level}`, rows: rowsOf(ablation, tallies, counts) };
  });
  const ofReasoning = levels.flatMap((level) => consistencyTables(ablation, level, done, answers));
  const ofMetrics = ablation.metrics.map((metric) => {
    const trained = done.filter(({ job }) => job.command !== "none");
    const figures = trained.flatMap((state) => {
      const value = metricAt(linesOf(state), { metric, window: ablation.window });
      return value === undefined ? [] : [{ state, value }]; // SFT has no rewards, GRPO no loss/sft
    });
    const [first] = trained;
    if (figures.length === 0 && first !== undefined)
      throw missingMetric(metric, trained.flatMap(linesOf), `metrics: ${first.folder}`);
    return { metric, rows: rowsOf(ablation, figures) };
  });
  return [...ofLevels, ...ofReasoning, ...ofMetrics];
}

/** Where eval.consistency is set: the share of answers, and of the right ones, that follow from their reasoning. */
function consistencyTables(
  ablation: Ablation,
  level: string,
  done: readonly JobState[],
  answers: ReadonlyMap<JobState, Run>,
): MetricTable[] {
  const wanted = done.filter(({ job }) => job.config.eval.consistency);
  if (wanted.length === 0) return [];
  const judged = (state: JobState): Run => {
    const records = [...(answers.get(state)?.[level] ?? [])].map(([id, record]): [string, EvalRecord] => {
      return [id, { ...record, reward: Number(recordConsistency(record) === "consistent") }];
    });
    return { [level]: new Map(records) };
  };
  const shares = (which: "all" | "right") =>
    wanted.flatMap((state) => {
      const counts = tallyConsistency(answers.get(state)?.[level]?.values() ?? [])[which];
      const value = consistencyShare(counts);
      if (value === null) return [];
      const n = counts.consistent + counts.inconsistent + counts.undecided;
      return [{ state, value, wilson: wilsonInterval(counts.consistent, n) }];
    });
  const counts = (a: JobState, b: JobState) => compareRuns(judged(a), judged(b)).rows.find(({ depth }) => depth === 0);
  return [
    { metric: `consistency ${level}`, rows: rowsOf(ablation, shares("all"), counts) },
    { metric: `consistency of right ones ${level}`, rows: rowsOf(ablation, shares("right")) },
  ];
}

export function linesOf({ folder }: JobState): Line[] {
  return readMetrics(path.join(folder, "metrics.jsonl"));
}

interface Figure {
  state: JobState;
  value: number;
  wilson?: Interval;
}

function rowsOf(
  { variants, baseOf }: Ablation,
  figures: readonly Figure[],
  counts?: (a: JobState, b: JobState) => PairedCounts | undefined,
): Row[] {
  const of = (variant: string) => figures.filter(({ state }) => state.job.variant === variant);
  return variants.flatMap((variant) => {
    const own = of(variant);
    const base = baseOf(variant);
    if (own.length === 0) return [];
    const { mean, interval } = meanInterval(own.map(({ value }) => value));
    const values = Object.fromEntries(own.map(({ state, value }) => [state.job.seed, value]));
    const pairs = of(base).flatMap((a) => {
      const b = own.find(({ state }) => state.job.seed === a.state.job.seed);
      return b === undefined ? [] : [{ a, b }];
    });
    const seeds = pairedMeans(
      pairs.map(({ a }) => a.value),
      pairs.map(({ b }) => b.value),
    );
    const shared = counts === undefined ? [] : pairs.flatMap(({ a, b }) => counts(a.state, b.state) ?? []);
    const against = {
      base,
      difference: seeds.difference,
      interval: seeds.interval,
      pSeeds: seeds.p,
      questions: shared.length === 0 ? null : byQuestion(shared),
    };
    const wilson = own[0]?.wilson; // of a share
    const shown =
      (wilson === undefined ? interval : withinOne(interval)) ?? (own.length === 1 ? (wilson ?? null) : null);
    return [
      { variant, values, mean, interval: shown, against: variant === base || pairs.length === 0 ? null : against },
    ];
  });
}

/** Student's t knows no bounds, a share does. */
function withinOne(interval: Interval | null): Interval | null {
  return interval === null ? null : [Math.max(0, interval[0]), Math.min(1, interval[1])];
}

/** Questions of all seeds together. */
function byQuestion(all: readonly PairedCounts[]): { n: number; low: number; high: number; p: number } {
  const sum = (key: keyof PairedCounts) => all.reduce((total, counts) => total + counts[key], 0);
  const counts = { both: sum("both"), onlyA: sum("onlyA"), onlyB: sum("onlyB"), neither: sum("neither") };
  const { low, high } = pairedDifference(counts);
  const n = counts.both + counts.onlyA + counts.onlyB + counts.neither;
  return { n, low, high, p: mcnemarExact(counts.onlyA, counts.onlyB) };
}
