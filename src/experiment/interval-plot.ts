/** Rows of an ablation's table as a picture: each variant's mean with its 95 % interval, the seeds as small ticks, the base as a line down. */

import { COLORS, escapeXml, fixed, TEXT, text, ticks } from "../eval/plot.ts";
import type { MetricTable } from "./ablation-tables.ts";

const ROW = 22;
const TOP = 44;
const LEFT = 150;
const GAP = 28;
const PANEL = 250;
const PER_ROW = 4;
const FOOT = 30;

/** One panel for each table, four side by side over the same variants. A variant that a table lacks leaves its line empty there. */
export function intervalPlot(tables: readonly MetricTable[], base: string, title: string): string {
  const variants = [...new Set(tables.flatMap(({ rows }) => rows.map(({ variant }) => variant)))];
  const height = TOP + variants.length * ROW + FOOT; // of a row of panels
  const rows = Math.ceil(tables.length / PER_ROW);
  const width = LEFT + Math.min(PER_ROW, tables.length) * (PANEL + GAP);
  const yOf = (variant: string) => TOP + (variants.indexOf(variant) + 0.5) * ROW;
  const groups = Array.from({ length: rows }, (_, row) => {
    const names = variants.map((variant) => text(LEFT - 12, yOf(variant) + 4, variant, `text-anchor="end"`));
    const panels = tables.slice(row * PER_ROW, (row + 1) * PER_ROW).map((table, i) => {
      return panel(table, base, { left: LEFT + i * (PANEL + GAP), bottom: height - FOOT, yOf });
    });
    return [`<g transform="translate(0 ${row * height})">`, ...names, ...panels, "</g>"].join("\n");
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${rows * height}" width="${width}" font-family="Helvetica, Arial, sans-serif" font-size="12">`,
    `<title>${escapeXml(title)}</title>`,
    `<rect width="100%" height="100%" fill="white"/>`,
    ...groups,
    "</svg>",
    "",
  ].join("\n");
}

interface Place {
  left: number;
  bottom: number;
  yOf: (variant: string) => number;
}

function panel({ metric, rows }: MetricTable, base: string, { left, bottom, yOf }: Place): string {
  // By what was seen, with a little room: an interval of three seeds may reach far beyond, and is cut off at the frame.
  const seen = rows.flatMap(({ values }) => Object.values(values));
  const [least, most] = [Math.min(...seen), Math.max(...seen)];
  const room = 0.25 * (most - least || 1);
  const [low, high] = [least - room, most + room];
  const px = (x: number) => left + ((Math.min(high, Math.max(low, x)) - low) / (high - low)) * PANEL;
  const out = [text(left, TOP - 16, metric, `font-size="14" font-weight="bold"`)];
  for (const x of ticks(low, high, 5)) {
    out.push(line(px(x), TOP, px(x), bottom, "#e3e3e3", 1));
    out.push(text(px(x), bottom + 16, String(x), `text-anchor="middle"`));
  }
  const reference = rows.find(({ variant }) => variant === base);
  if (reference !== undefined) out.push(line(px(reference.mean), TOP, px(reference.mean), bottom, TEXT, 1));
  for (const { variant, mean, interval, values } of rows) {
    const y = yOf(variant);
    const color = COLORS[variant === base ? 1 : 0];
    if (interval !== null) out.push(line(px(interval[0]), y, px(interval[1]), y, color, 1.5));
    for (const value of Object.values(values)) out.push(line(px(value), y - 4, px(value), y + 4, color, 1));
    out.push(`<circle cx="${fixed(px(mean))}" cy="${fixed(y)}" r="4" fill="${color}"/>`);
  }
  return out.join("\n");
}

function line(x1: number, y1: number, x2: number, y2: number, color: string | undefined, width: number): string {
  return `<line x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}" stroke="${color}" stroke-width="${width}"/>`;
}
