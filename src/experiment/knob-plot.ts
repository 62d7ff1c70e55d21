/** An ablation's figures over a knob that its variants differ by, such as the number of training questions: a line for each command. */

import { type Panel, plotSvg, type Series } from "../eval/plot.ts";
import type { JobState } from "./ablation.ts";
import { knobAt } from "./ablation-spec.ts";
import type { MetricTable } from "./ablation-tables.ts";

/** A panel for each table. What was not trained is a dashed line all along. */
export function knobPlot(tables: readonly MetricTable[], knob: string, jobs: readonly JobState[]): string {
  const jobOf = (variant: string) => jobs.find(({ job }) => job.variant === variant)?.job;
  const xOf = (variant: string) => {
    const job = jobOf(variant);
    return job === undefined ? undefined : knobAt(job.config, knob);
  };
  const all = tables.flatMap(({ rows }) => rows);
  const xs = all.map(({ variant }) => xOf(variant)).filter((x) => typeof x === "number");
  const ends = [Math.min(...xs), Math.max(...xs)];
  const panels = tables.map(({ metric, rows }): Panel => {
    const trained = rows.filter(({ variant }) => jobOf(variant)?.command !== "none");
    const commands = [...new Set(trained.map(({ variant }) => jobOf(variant)?.command as string))];
    const lines = commands.map((command): Series => {
      const own = trained.flatMap(({ variant, mean, values }) => {
        const x = xOf(variant);
        if (jobOf(variant)?.command !== command || typeof x !== "number") return [];
        return [{ x, y: mean, low: Math.min(...Object.values(values)), high: Math.max(...Object.values(values)) }];
      });
      const points = own.sort((a, b) => a.x - b.x);
      return { name: command, points, band: points };
    });
    const untrained = rows
      .filter(({ variant }) => jobOf(variant)?.command === "none")
      .map(({ variant, mean }): Series => {
        return { name: variant, points: ends.map((x) => ({ x, y: mean })), dashed: true };
      });
    return { title: metric, yLabel: metric, series: [...lines, ...untrained] };
  });
  const isLog = ends[0] !== undefined && ends[0] > 0;
  return plotSvg(panels, { title: `By ${knob}`, xLabel: knob, xLog: isLog, panelHeight: 260 });
}
