/**
 * Curves over steps as one SVG file, from the metrics.jsonl of one or more runs: reward and accuracy above, and whatever else is asked for
 * in panels below. No library: an SVG is text, and a run's plot needs axes, round ticks, lines and a legend.
 */

export interface Series {
  name: string;
  /** Points in the order they are joined. */
  points: { x: number; y: number }[];
  /** Faint: drawn thin and pale, e.g. raw values behind their smoothed curve; not in the legend. */
  faint?: boolean;
  dashed?: boolean;
  color?: string;
  /** A pale area about the curve, e.g. from the lowest to the highest of several runs. */
  band?: { x: number; low: number; high: number }[];
}

export interface Panel {
  title: string;
  yLabel: string;
  series: Series[];
  /** Fixed range of y; default: what the points need. */
  yRange?: [low: number, high: number];
}

export interface PlotOptions {
  title: string;
  xLabel?: string;
  /** Equal factors of x are equally far apart, and each x of a point is marked below. */
  xLog?: boolean;
  width?: number;
  panelHeight?: number;
}

/** A line of metrics.jsonl: its step, then numbers by name. */
export type MetricsLine = { step: number } & Record<string, number>;

export const COLORS = ["#1f6fb4", "#d9622b", "#2f9e57", "#8a55b8", "#b8860b", "#c2385f", "#4b5563", "#0f8b8d"] as const;
const MARGIN = { left: 64, right: 176, top: 44, bottom: 46 } as const;
export const TEXT = "#333";

/**
 * The usual plot of a run: `reward/mean` with its moving average, and `eval/<level>/accuracy` where the run was evaluated on the way.
 * `runs` maps a run's name to the lines of its metrics.jsonl. A level has one colour in all runs; all runs but the last are dashed.
 */
export function runPlot(runs: Record<string, readonly MetricsLine[]>, title: string): string {
  const names = Object.keys(runs);
  const prefix = (run: string) => (names.length > 1 ? `${run} ` : "");
  const reward: Series[] = [];
  const accuracy: Series[] = [];
  const levels = levelsOf(Object.values(runs).flat());
  for (const [index, run] of names.entries()) {
    const lines = runs[run] as readonly MetricsLine[];
    const color = COLORS[index % COLORS.length] as string;
    const raw = pointsOf(lines, "reward/mean");
    if (raw.length > 0) {
      reward.push({ name: run, points: raw, faint: true, color });
      reward.push({
        name: `${prefix(run)}reward`,
        points: smooth(raw, Math.max(1, Math.round(raw.length / 20))),
        color,
      });
    }
    for (const [i, level] of levels.entries()) {
      const points = pointsOf(lines, `eval/${level}/accuracy`);
      if (points.length === 0) continue;
      const dashed = index < names.length - 1;
      accuracy.push({ name: `${prefix(run)}${level}`, points, dashed, color: COLORS[i % COLORS.length] as string });
    }
  }
  const panels: Panel[] = [];
  if (reward.length > 0) panels.push({ title: "Reward", yLabel: "mean reward", series: reward });
  if (accuracy.length > 0) panels.push({ title: "Accuracy", yLabel: "accuracy", series: accuracy, yRange: [0, 1] });
  return plotSvg(panels, { title });
}

/** Names of the levels that were evaluated on the way, sorted. */
function levelsOf(lines: readonly MetricsLine[]): string[] {
  const names = lines.flatMap((line) =>
    Object.keys(line).flatMap((key) => /^eval\/(.+)\/accuracy$/.exec(key)?.[1] ?? []),
  );
  return [...new Set(names)].sort();
}

/** The points (step, value) of one metric; lines without it, or with a value that is not finite, are left out. */
export function pointsOf(lines: readonly MetricsLine[], metric: string): { x: number; y: number }[] {
  return lines.flatMap((line) => {
    const y = line[metric];
    return typeof y === "number" && Number.isFinite(y) ? [{ x: line.step, y }] : [];
  });
}

/** Centred moving average over `radius` points to either side; fewer at the ends. */
export function smooth(points: readonly { x: number; y: number }[], radius: number): { x: number; y: number }[] {
  return points.map(({ x }, i) => {
    const near = points.slice(Math.max(0, i - radius), i + radius + 1);
    return { x, y: near.reduce((sum, point) => sum + point.y, 0) / near.length };
  });
}

/** Round numbers that cover [low, high] in about `count` steps of 1, 2 or 5 times a power of ten. */
export function ticks(low: number, high: number, count = 6): number[] {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const out: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    out.push(Number((i * step).toPrecision(12)));
  return out;
}

/** Draws panels below each other. */
export function plotSvg(panels: readonly Panel[], options: PlotOptions): string {
  const width = options.width ?? 900;
  const height = options.panelHeight ?? 320;
  const xs = panels.flatMap(({ series }) => series.flatMap(({ points }) => points.map(({ x }) => x)));
  const place = { width, height, xs, xLog: options.xLog ?? false, xLabel: options.xLabel ?? "step" };
  const body = panels.map((panel, i) => drawPanel(panel, { ...place, top: 30 + i * height }));
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${30 + panels.length * height}" width="${width}" font-family="Helvetica, Arial, sans-serif" font-size="12">`,
    `<title>${escapeXml(options.title)}</title>`,
    `<rect width="100%" height="100%" fill="white"/>`,
    text(MARGIN.left, 24, options.title, `font-size="16" font-weight="bold"`),
    ...body,
    "</svg>",
    "",
  ].join("\n");
}

interface Place {
  top: number;
  width: number;
  height: number;
  /** Of all panels: they share an axis. */
  xs: readonly number[];
  xLog: boolean;
  xLabel: string;
}

function drawPanel(panel: Panel, { top, width, height, xs, xLog, xLabel }: Place): string {
  const along = (x: number) => (xLog ? Math.log(x) : x);
  const [x0, x1] = span(xs.map(along));
  const [y0, y1] = panel.yRange ?? widened(span(panel.series.flatMap(heights)));
  const left = MARGIN.left;
  const right = width - MARGIN.right;
  const upper = top + MARGIN.top;
  const lower = top + height - MARGIN.bottom;
  const px = (x: number) => left + ((along(x) - x0) / (x1 - x0)) * (right - left);
  const py = (y: number) => lower - ((y - y0) / (y1 - y0)) * (lower - upper);

  const out = [text(left, upper - 12, panel.title, `font-size="14" font-weight="bold"`)];
  for (const y of ticks(y0, y1)) {
    out.push(`<line x1="${left}" y1="${fixed(py(y))}" x2="${right}" y2="${fixed(py(y))}" stroke="#e3e3e3"/>`);
    out.push(text(left - 8, py(y) + 4, String(y), `text-anchor="end"`));
  }
  for (const x of xLog ? new Set(xs) : ticks(x0, x1, 8)) {
    out.push(`<line x1="${fixed(px(x))}" y1="${lower}" x2="${fixed(px(x))}" y2="${lower + 5}" stroke="${TEXT}"/>`);
    out.push(text(px(x), lower + 18, String(x), `text-anchor="middle"`));
  }
  out.push(`<path d="M${left} ${upper}V${lower}H${right}" fill="none" stroke="${TEXT}"/>`);
  out.push(text((left + right) / 2, lower + 36, xLabel, `text-anchor="middle"`));
  const middle = (upper + lower) / 2;
  out.push(text(16, middle, panel.yLabel, `text-anchor="middle" transform="rotate(-90 16 ${fixed(middle)})"`));

  let legendRow = 0;
  let nextColor = 0;
  for (const series of panel.series) {
    const color = series.color ?? (COLORS[nextColor++ % COLORS.length] as string);
    const path = series.points.map(({ x, y }, i) => `${i === 0 ? "M" : "L"}${fixed(px(x))} ${fixed(py(y))}`).join("");
    const dashes = series.dashed ? ` stroke-dasharray="7 5"` : "";
    if (series.band !== undefined && series.band.length > 1) {
      const edge = (side: "low" | "high") =>
        series.band?.map((at) => `${fixed(px(at.x))} ${fixed(py(at[side]))}`) ?? [];
      const around = [...edge("high"), ...edge("low").reverse()].join("L");
      out.push(`<path d="M${around}Z" fill="${color}" opacity="0.15"/>`);
    }
    const look = series.faint ? `stroke-width="1" opacity="0.3"` : `stroke-width="2"${dashes}`;
    out.push(`<path d="${path}" fill="none" stroke="${color}" stroke-linejoin="round" ${look}/>`);
    if (series.faint) continue;
    // Few points (an evaluation now and then) are marked, so that a single one can be seen at all.
    if (series.points.length <= 30) {
      for (const { x, y } of series.points)
        out.push(`<circle cx="${fixed(px(x))}" cy="${fixed(py(y))}" r="3" fill="${color}"/>`);
    }
    const y = upper + 8 + 18 * legendRow++;
    const [from, to] = [right + 14, right + 36];
    out.push(`<line x1="${from}" y1="${y}" x2="${to}" y2="${y}" stroke="${color}" stroke-width="3"${dashes}/>`);
    out.push(text(right + 42, y + 4, series.name));
  }
  return out.join("\n");
}

/** Every y that a series needs room for. */
function heights({ points, band = [] }: Series): number[] {
  return [...points.map(({ y }) => y), ...band.flatMap(({ low, high }) => [low, high])];
}

/** Lowest and highest value, widened where they are equal or nothing is there. */
export function span(values: readonly number[]): [low: number, high: number] {
  if (values.length === 0) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** A little room at both ends, so that no curve runs along the frame. */
export function widened([low, high]: [low: number, high: number]): [low: number, high: number] {
  const room = 0.04 * (high - low);
  return [low - room, high + room];
}

/** A label at a place of the picture. */
export function text(x: number, y: number, content: string, attributes = ""): string {
  return `<text x="${fixed(x)}" y="${fixed(y)}" fill="${TEXT}" ${attributes}>${escapeXml(content)}</text>`;
}

/** Text as an attribute's value or an element's content. */
export function escapeXml(content: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return content.replace(/[&<>"]/g, (character) => names[character] as string);
}

/** A coordinate, to a hundredth of a pixel. */
export function fixed(value: number): string {
  return Number(value.toFixed(2)).toString();
}
