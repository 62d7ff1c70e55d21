/** What an ablation shows: its tables as text and HTML, means, intervals and learning curves as pictures. */

import { existsSync } from "node:fs";
import path from "node:path";
import { COLORS, type Panel, plotSvg, pointsOf, type Series, smooth } from "../eval/plot.ts";
import { alignTable } from "../eval/table.ts";
import { replaceFile } from "../trainer/files.ts";
import { readMetrics } from "../trainer/run-folder.ts";
import type { JobState } from "./ablation.ts";
import type { Ablation } from "./ablation-spec.ts";
import type { Interval, MetricTable, Row } from "./ablation-tables.ts";
import { htmlPage, htmlTable, type Section } from "./html.ts";
import { intervalPlot } from "./interval-plot.ts";
import { knobPlot } from "./knob-plot.ts";
import { number } from "./sweep-report.ts";

/** All tables as text. */
export function ablationText(
  { base, seeds }: Pick<Ablation, "base" | "seeds">,
  tables: readonly MetricTable[],
): string {
  const found = tables.filter(({ rows }) => rows.length > 0);
  if (found.length === 0) return "no run has ended";
  return [...found.map((table) => alignTable(cellsOf(table, base))), notes(seeds.length)].join("\n\n");
}

function cellsOf({ metric, rows }: MetricTable, base: string): string[][] {
  const questions = rows.some(({ against }) => against?.questions);
  const bases = new Set(rows.flatMap(({ against }) => against?.base ?? []));
  const several = bases.size > 1; // then each row names its own
  const head = [
    metric,
    "seeds",
    "mean",
    "95 %",
    several ? "difference" : `- ${base}`,
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
      against === null ? "" : `${signed(against.difference)}${several ? ` to ${against.base}` : ""}`,
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
        dashed: i >= COLORS.length,
        points: at.map(({ x, ys }) => ({ x, y: ys.reduce((sum, y) => sum + y, 0) / ys.length })),
        band: at.map(({ x, ys }) => ({ x, low: Math.min(...ys), high: Math.max(...ys) })),
      },
    ];
  });
  return { title: metric, yLabel: metric, series };
}
