/** What a sweep has found: a table for the terminal, results.json, the best config, and a page of plots. */

import { existsSync } from "node:fs";
import path from "node:path";
import { dumpConfig } from "../config/load.ts";
import { alignTable } from "../eval/table.ts";
import { replaceFile } from "../trainer/files.ts";
import { readMetrics } from "../trainer/run-folder.ts";
import { htmlPage, htmlTable, type Section } from "./html.ts";
import { type Importance, importances, LEAST_TRIALS } from "./importance.ts";
import type { Line } from "./objective.ts";
import { parallelCoordinates } from "./parallel-coordinates.ts";
import type { Params } from "./space.ts";
import { curvesSvg, historySvg, importanceSvg } from "./sweep-plots.ts";
import type { Sweep } from "./sweep-spec.ts";
import { mean, ranked, type Trial } from "./trials.ts";

/** `learningRate 0.0003, klCoef 0.04`. */
export function paramsText(params: Params): string {
  const names = shortNames(Object.keys(params));
  return Object.values(params)
    .map((value, i) => `${names[i]} ${valueText(value)}`)
    .join(", ");
}

/** What is printed when a trial has ended. */
export function trialLine({ trials: planned, objective }: Sweep, trial: Trial, all: readonly Trial[]): string {
  const [best] = ranked(all, objective);
  const over = all.filter(({ status }) => status !== "open").length;
  const value = trial.value === null ? "" : ` ${number(trial.value)}`;
  const lead = best === undefined || best.value === null ? "" : `; best: trial ${best.trial}, ${number(best.value)}`;
  return `[${over}/${planned}] trial ${trial.trial}: ${statusText(trial)}${value}  (${paramsText(trial.params)})${lead}`;
}

/** Trials from best to worst. */
export function sweepTable({ objective, seeds }: Pick<Sweep, "objective" | "seeds">, trials: readonly Trial[]): string {
  const order = ranked(trials, objective);
  if (order.length === 0) return "no trial has ended";
  return alignTable(tableRows(objective.metric, seeds.length, trials, order));
}

/** Writes results.json, best.yaml and report.html into the sweep's folder. Returns their paths. */
export function writeSweepResults(sweep: Sweep, trials: readonly Trial[]): string[] {
  const { objective, runDir } = sweep;
  const order = ranked(trials, objective);
  const best = order.find(({ status }) => status === "finished");
  const found = importancesOf(sweep, trials);
  const at = (name: string) => path.join(runDir, name);
  const results = { objective, best: best?.trial ?? null, importance: found.figures, importanceOf: found.of, trials };
  replaceFile(at("results.json"), `${JSON.stringify(results, null, 2)}\n`);
  if (best !== undefined) {
    const config = { ...sweep.ownConfigOf(best.params), runDir: at("best") };
    replaceFile(at("best.yaml"), dumpConfig(config));
  }
  replaceFile(at("report.html"), sweepPage(sweep, trials, linesOf(sweep, trials)));
  return [at("results.json"), ...(best === undefined ? [] : [at("best.yaml")]), at("report.html")];
}

/** The page; `lines` are those of each trial's first run, for the learning curves. */
export function sweepPage(sweep: Sweep, trials: readonly Trial[], lines: ReadonlyMap<number, readonly Line[]>): string {
  const { objective, search, seeds, command } = sweep;
  const order = ranked(trials, objective);
  const best = order.find(({ status }) => status === "finished");
  const found = importancesOf(sweep, trials);
  const { space } = search;
  const names = [...shortNames(space.map(({ knob }) => knob)), objective.metric];
  const drawn = order.map((trial) => ({
    params: trial.params,
    value: trial.value,
    dashed: trial.status === "stopped",
    label: `trial ${trial.trial}: ${paramsText(trial.params)}: ${statusText(trial)} ${trial.value === null ? "" : number(trial.value)}`,
  }));
  const sections: Section[] = [
    {
      title: "Best setting",
      note: `${trials.length} trials of ${command} (${search.kind}), ${seeds.length} ${seeds.length === 1 ? "seed" : "seeds"} each; ${objective.goal} ${objective.metric}, mean over ${objective.window} steps.`,
      body:
        best === undefined
          ? "<p>no trial has finished</p>"
          : htmlTable([
              ["knob", "value"],
              ...Object.entries(best.params).map(([knob, value]) => [knob, valueText(value)]),
              [objective.metric, number(best.value as number)],
            ]),
    },
    {
      title: "Parallel coordinates",
      note: "A line for each trial, bright for good ones, dashed where a trial was stopped early, dotted grey where it failed.",
      body: parallelCoordinates(space, drawn, { names, goal: objective.goal }),
    },
    {
      title: "Parameter importance",
      note:
        found.figures.length === 0
          ? `Takes ${LEAST_TRIALS} trials that differ.`
          : `Share of the variance of ${found.of} that a knob explains by itself (functional ANOVA on a random forest); rho: Spearman's rank correlation. With few trials these are hints.`,
      body: importanceSvg(found.figures),
    },
    {
      title: "Trials in order",
      note: "Finished ones filled, hollow ones with their value where they were stopped; the line is the best so far.",
      body: historySvg(trials, objective),
    },
    {
      title: "Learning curves",
      note: "First seed of each trial; the ten best have names.",
      body: curvesSvg(order, lines, objective),
    },
    { title: "All trials", body: htmlTable(tableRows(objective.metric, seeds.length, trials, order)) },
  ];
  return htmlPage(`Sweep ${sweep.runDir}`, sections);
}

/**
 * From finished trials; where some are stopped early, from all at the first rung, since only the good ones finish.
 */
function importancesOf(
  { search: { space }, halving, objective, seeds }: Sweep,
  trials: readonly Trial[],
): { figures: Importance[]; of: string } {
  const byRung = halving !== undefined && trials.some(({ status }) => status === "stopped");
  const values = trials.flatMap(({ params, status, value, rungs }) => {
    if (!byRung) return status === "finished" && value !== null ? [{ params, value }] : [];
    const first = rungs.filter(({ seed, step }) => seed === seeds[0] && step === halving.minSteps);
    return first.length === 0 ? [] : [{ params, value: mean(first.map((rung) => rung.value)) }];
  });
  const of = byRung ? `${objective.metric} at step ${halving.minSteps}` : objective.metric;
  return { figures: importances(space, values), of };
}

function linesOf({ runDir, seeds }: Sweep, trials: readonly Trial[]): Map<number, Line[]> {
  return new Map(
    trials.flatMap(({ trial }) => {
      const folder = path.join(runDir, `trial-${String(trial).padStart(3, "0")}`);
      const file = path.join(folder, `seed-${seeds[0]}`, "metrics.jsonl");
      return existsSync(file) ? [[trial, readMetrics(file)] as const] : [];
    }),
  );
}

function tableRows(metric: string, seeds: number, trials: readonly Trial[], order: readonly Trial[]): string[][] {
  const knobs = Object.keys(trials[0]?.params ?? {});
  const head = ["trial", metric, ...(seeds > 1 ? ["by seed"] : []), "status", ...shortNames(knobs), "seconds"];
  return [
    head,
    ...order.map((trial) => [
      String(trial.trial),
      trial.value === null ? "-" : number(trial.value),
      ...(seeds > 1 ? [trial.runs.map(({ value }) => (value === null ? "-" : number(value))).join(" ")] : []),
      statusText(trial),
      ...knobs.map((knob) => valueText(trial.params[knob])),
      trial.runs.reduce((sum, { seconds }) => sum + seconds, 0).toFixed(0),
    ]),
  ];
}

function statusText({ status, runs }: Trial): string {
  const last = runs.at(-1);
  if (status === "stopped") return `stopped at ${last?.step}`;
  if (status === "failed") return `failed: ${(last?.reason ?? "").split("\n").at(-1)?.slice(0, 60)}`;
  return status;
}

/** Last names of knobs, with as much before them as tells them apart. */
export function shortNames(knobs: readonly string[]): string[] {
  const last = (knob: string, parts: number) => knob.split(".").slice(-parts).join(".");
  return knobs.map((knob) => {
    for (let parts = 1; ; parts++) {
      const name = last(knob, parts);
      if (name === knob || knobs.filter((other) => last(other, parts) === name).length === 1) return name;
    }
  });
}

export function valueText(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Four digits. */
export function number(value: number): string {
  return String(Number(value.toPrecision(4)));
}
