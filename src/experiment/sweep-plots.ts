/** Plots of a sweep besides its parallel coordinates. */

import {
  escapeXml,
  fixed,
  plotSvg,
  pointsOf,
  type Series,
  smooth,
  span,
  TEXT,
  text,
  ticks,
  widened,
} from "../eval/plot.ts";
import type { Importance } from "./importance.ts";
import type { Line } from "./objective.ts";
import { colorOf } from "./parallel-coordinates.ts";
import type { Objective } from "./spec.ts";
import { goodness, type Trial } from "./trials.ts";

const NAMED_CURVES = 10;

/** A bar for each knob. */
export function importanceSvg(figures: readonly Importance[]): string {
  const [left, bar, row] = [210, 420, 26];
  const rows = figures.flatMap(({ knob, share, correlation }, i) => {
    const y = 8 + i * row;
    const rho = correlation === null ? "" : `   rho ${correlation < 0 ? "-" : "+"}${Math.abs(correlation).toFixed(2)}`;
    return [
      text(left - 8, y + 14, knob, `text-anchor="end"`),
      `<rect x="${left}" y="${y}" width="${fixed(Math.max(1, bar * share))}" height="${row - 8}" fill="#1f6fb4"/>`,
      text(left + bar * share + 8, y + 14, `${(100 * share).toFixed(0)} %${rho}`),
    ];
  });
  const size = `width="${left + bar + 160}" height="${16 + figures.length * row}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="Helvetica, Arial, sans-serif" font-size="12">`,
    ...rows,
    "</svg>",
  ].join("\n");
}

/** The objective by trial number, and the best so far. */
export function historySvg(trials: readonly Trial[], objective: Pick<Objective, "metric" | "goal">): string {
  const [width, height, left, right, top, bottom] = [900, 280, 64, 880, 16, 236];
  const done = trials.flatMap(({ trial, value, status }) => (value === null ? [] : [{ trial, value, status }]));
  const [low, high] = widened(span(done.map(({ value }) => value)));
  const most = Math.max(1, trials.length - 1);
  const px = (trial: number) => left + (trial / most) * (right - left);
  const py = (value: number) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const out = ticks(low, high).flatMap((value) => [
    `<line x1="${left}" y1="${fixed(py(value))}" x2="${right}" y2="${fixed(py(value))}" stroke="#e3e3e3"/>`,
    text(left - 8, py(value) + 4, String(value), `text-anchor="end"`),
  ]);
  for (const trial of ticks(0, most, 10).filter(Number.isInteger))
    out.push(text(px(trial), bottom + 20, String(trial), `text-anchor="middle"`));
  out.push(text((left + right) / 2, bottom + 38, "trial", `text-anchor="middle"`));
  let best = "";
  let lead: number | undefined;
  for (const { trial, value, status } of done) {
    if (status !== "finished") continue;
    if (lead !== undefined && goodness(value, objective) <= goodness(lead, objective)) continue;
    best +=
      lead === undefined ? `M${fixed(px(trial))} ${fixed(py(value))}` : `H${fixed(px(trial))}V${fixed(py(value))}`;
    lead = value;
  }
  if (best !== "") out.push(`<path d="${best}H${right}" fill="none" stroke="#d9622b" stroke-width="2"/>`);
  for (const { trial, value, status } of done) {
    const fill = status === "finished" ? "#1f6fb4" : "white";
    const label = `trial ${trial}: ${status} ${value}`;
    out.push(
      `<circle cx="${fixed(px(trial))}" cy="${fixed(py(value))}" r="4" fill="${fill}" stroke="#1f6fb4"><title>${escapeXml(label)}</title></circle>`,
    );
  }
  out.push(`<path d="M${left} ${top}V${bottom}H${right}" fill="none" stroke="${TEXT}"/>`);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" font-family="Helvetica, Arial, sans-serif" font-size="12">`,
    ...out,
    "</svg>",
  ].join("\n");
}

/** The objective's metric by step, smoothed; the best trials in colour, the others grey. */
export function curvesSvg(
  order: readonly Trial[],
  lines: ReadonlyMap<number, readonly Line[]>,
  { metric }: Pick<Objective, "metric">,
): string {
  const curves = order.flatMap(({ trial }): Series[] => {
    const raw = pointsOf((lines.get(trial) ?? []) as never, metric);
    if (raw.length === 0) return [];
    return [{ name: `trial ${trial}`, points: smooth(raw, Math.round(raw.length / 20)) }];
  });
  const named = curves
    .slice(0, NAMED_CURVES)
    .map((series, i, all) => ({ ...series, color: colorOf(0.95 - (0.95 * i) / all.length) }));
  const others = curves.slice(NAMED_CURVES).map((series) => ({ ...series, faint: true, color: "#888" }));
  const panel = { title: metric, yLabel: metric, series: [...others, ...named] };
  return plotSvg([panel], { title: `${metric} by step` });
}
