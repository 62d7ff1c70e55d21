/** What an ablation has found: for each metric a table of variants, and their learning curves. */

import { existsSync } from "node:fs";
import path from "node:path";
import type { EvalRecord } from "../eval/answers.ts";
import { compareRuns, type Run, readRun } from "../eval/compare.ts";
import { consistencyShare, recordConsistency, tallyConsistency } from "../eval/consistency.ts";
import { wilsonInterval } from "../eval/intervals.ts";
import { mcnemarExact, type PairedCounts, pairedDifference } from "../eval/paired.ts";
import { COLORS, type Panel, plotSvg, pointsOf, type Series, smooth } from "../eval/plot.ts";
import { alignTable } from "../eval/report.ts";
import { meanInterval, pairedMeans } from "../eval/student.ts";
import { replaceFile } from "../trainer/files.ts";
import { readMetrics } from "../trainer/run-folder.ts";
import { evalFolder, type JobState } from "./ablation.ts";
import type { Ablation } from "./ablation-spec.ts";
import { htmlPage, htmlTable, type Section } from "./html.ts";
import { intervalPlot } from "./interval-plot.ts";
import { knobPlot } from "./knob-plot.ts";
import { type Line, metricAt, missingMetric } from "./objective.ts";
import { number } from "./sweep-report.ts";

type Interval = readonly [low: number, high: number];

/** A variant under one metric. */
export interface Row {
  variant: string;
  /** By seed, of runs that have finished. */
  values: Record<number, number>;
  mean: number;
  /** 95 %: Student's t over seeds; of one seed's accuracy Wilson's over its questions; else null. */
  interval: Interval | null;
  /** Against the base variant, on the seeds that both have; null for the base itself. */
  against: {
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

function linesOf({ folder }: JobState): Line[] {
  return readMetrics(path.join(folder, "metrics.jsonl"));
}

interface Figure {
  state: JobState;
  value: number;
  wilson?: Interval;
}

function rowsOf(
  { variants, base }: Ablation,
  figures: readonly Figure[],
  counts?: (a: JobState, b: JobState) => PairedCounts | undefined,
): Row[] {
  const of = (variant: string) => figures.filter(({ state }) => state.job.variant === variant);
  return variants.flatMap((variant) => {
    const own = of(variant);
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
      difference: seeds.difference,
      interval: seeds.interval,
      pSeeds: seeds.p,
      questions: shared.length === 0 ? null : byQuestion(shared),
    };
    const shown =
      (counts === undefined ? interval : withinOne(interval)) ?? (own.length === 1 ? (own[0]?.wilson ?? null) : null);
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

/** All tables as text. */
export function ablationText(
  { base, seeds }: Pick<Ablation, "base" | "seeds">,
  tables: readonly MetricTable[],
): string {
  return [...tables.map((table) => alignTable(cellsOf(table, base))), notes(seeds.length)].join("\n\n");
}

function cellsOf({ metric, rows }: MetricTable, base: string): string[][] {
  const questions = rows.some(({ against }) => against?.questions);
  const head = [
    metric,
    "seeds",
    "mean",
    "95 %",
    `- ${base}`,
    "95 %",
    "p",
    ...(questions ? ["by question 95 %", "p"] : []),
  ];
  return [
    head,
    ...rows.map(({ variant, values, mean, interval, against }) => [
      variant,
      String(Object.keys(values).length),
      number(mean),
      range(interval),
      against === null ? "" : signed(against.difference),
      against === null ? "" : range(against.interval),
      against === null ? "" : pText(against.pSeeds),
      ...(questions ? questionCells(against) : []),
    ]),
  ];
}

function questionCells(against: Row["against"]): string[] {
  if (!against?.questions) return ["", ""];
  const { low, high, p } = against.questions;
  return [range([low, high]), pText(p)];
}

function range(interval: Interval | null): string {
  return interval === null ? "-" : `${number3(interval[0])} to ${number3(interval[1])}`;
}

function pText(p: number | null): string {
  return p === null ? "-" : p < 0.0001 ? "<0.0001" : p.toFixed(4);
}

function signed(value: number): string {
  return `${value < 0 ? "-" : "+"}${number3(Math.abs(value))}`;
}

function number3(value: number): string {
  return String(Number(value.toPrecision(3)));
}

function notes(seeds: number): string {
  const over =
    seeds < 2
      ? "One seed: nothing is known of how runs differ by it."
      : "95 % and p: Student's t over seeds, paired by seed against the base: what another seed would bring.";
  return `${over}\nBy question: answers of the trained models to the same questions, seeds together (Newcombe's interval, McNemar's exact test): what\nother questions would bring these models. p is not adjusted for the number of rows.`;
}

/** Writes results.json, report.html and its pictures, as files of their own, into the ablation's folder. Returns their paths. */
export function writeAblationResults(
  ablation: Ablation,
  jobs: readonly JobState[],
  tables: readonly MetricTable[],
): string[] {
  const at = (name: string) => path.join(ablation.runDir, name);
  const runs = jobs.map(({ job: { variant, seed }, status, seconds, reason }) => ({
    variant,
    seed,
    status,
    seconds,
    reason,
  }));
  replaceFile(at("results.json"), `${JSON.stringify({ base: ablation.base, runs, tables }, null, 2)}\n`);
  replaceFile(at("report.html"), ablationPage(ablation, jobs, tables));
  const pictures = picturesOf(ablation, jobs, tables);
  for (const [name, svg] of Object.entries(pictures)) replaceFile(at(`${name}.svg`), svg);
  return [at("results.json"), at("report.html"), ...Object.keys(pictures).map((name) => at(`${name}.svg`))];
}

/** Means and intervals; means over a knob, where the file names one; learning curves, where variants were trained. */
function picturesOf(
  ablation: Ablation,
  jobs: readonly JobState[],
  tables: readonly MetricTable[],
): Partial<Record<"intervals" | "against" | "curves", string>> {
  const panels = ablation.curves
    .map((metric) => curvePanel(metric, ablation, jobs))
    .filter(({ series }) => series.length > 0);
  const drawn = tables.filter(({ rows }) => rows.length > 0);
  return {
    ...(drawn.length > 0 && { intervals: intervalPlot(drawn, ablation.base, "Variants") }),
    ...(ablation.against !== undefined && { against: knobPlot(drawn, ablation.against, jobs) }),
    ...(panels.length > 0 && { curves: plotSvg(panels, { title: "Variants by step" }) }),
  };
}

export function ablationPage(ablation: Ablation, jobs: readonly JobState[], tables: readonly MetricTable[]): string {
  const { seeds, base, against } = ablation;
  const { intervals, against: overKnob, curves } = picturesOf(ablation, jobs, tables);
  const sections: Section[] = [
    ...tables.map((table) => ({ title: table.metric, body: htmlTable(cellsOf(table, base)) })),
    { title: "How to read this", note: notes(seeds.length), body: "" },
    ...picture("Means", "95 % intervals over seeds; small ticks are the seeds, the line down is the base.", intervals),
    ...picture(`Against ${against}`, "Mean over seeds; the band goes from the lowest to the highest seed.", overKnob),
    ...picture(
      "Learning curves",
      "Mean over seeds, smoothed; the band goes from the lowest to the highest seed.",
      curves,
    ),
    { title: "Runs", body: htmlTable(runRows(jobs)) },
  ];
  return htmlPage(`Ablation ${ablation.runDir}`, sections);
}

function picture(title: string, note: string, svg: string | undefined): Section[] {
  return svg === undefined ? [] : [{ title, note, body: svg }];
}

function runRows(jobs: readonly JobState[]): string[][] {
  const rows = jobs.map(({ job, status, seconds, reason }) => [
    job.variant,
    String(job.seed),
    status === "failed" ? `failed: ${(reason ?? "").split("\n").at(-1)}` : status,
    seconds.toFixed(0),
  ]);
  return [["variant", "seed", "status", "seconds"], ...rows];
}

function curvePanel(metric: string, { variants }: Ablation, jobs: readonly JobState[]): Panel {
  const series = variants.flatMap((variant, i): Series[] => {
    const curves = jobs
      .filter(({ job, status }) => job.variant === variant && status === "finished")
      .map(({ folder }) => path.join(folder, "metrics.jsonl"))
      .filter((file) => existsSync(file))
      .map((file) => pointsOf(readMetrics(file), metric))
      .filter((points) => points.length > 0)
      .map((points) => smooth(points, Math.round(points.length / 20)));
    if (curves.length === 0) return [];
    const steps = [...new Set(curves.flatMap((points) => points.map(({ x }) => x)))].sort((a, b) => a - b);
    const at = steps.map((x) => ({
      x,
      ys: curves.flatMap((points) => points.find((point) => point.x === x)?.y ?? []),
    }));
    return [
      {
        name: variant,
        color: COLORS[i % COLORS.length] as string,
        points: at.map(({ x, ys }) => ({ x, y: ys.reduce((sum, y) => sum + y, 0) / ys.length })),
        band: at.map(({ x, ys }) => ({ x, low: Math.min(...ys), high: Math.max(...ys) })),
      },
    ];
  });
  return { title: metric, yLabel: metric, series };
}
