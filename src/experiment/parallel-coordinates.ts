/** Parallel coordinates: an axis for each knob and one for the objective, a line for each trial, coloured by how good it was. */

import { escapeXml, fixed, span, TEXT, text, ticks } from "../eval/plot.ts";
import { placeOf } from "./importance.ts";
import { type Dimension, fromUnit, type Params } from "./space.ts";

export interface DrawnTrial {
  params: Params;
  /** null: failed. */
  value: number | null;
  /** Ended early: drawn with dashes. */
  dashed: boolean;
  /** Shown where the pointer is. */
  label: string;
}

const HEIGHT = 380;
const TOP = 64;
const BOTTOM = HEIGHT - 24;
const LEFT = 70;
/** Keeps numbers readable where lines cross them. */
const HALO = `paint-order="stroke" stroke="white" stroke-width="3"`;
/** Viridis in five steps, from worst to best: told apart in grey and by the colour-blind too. */
const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"] as const;

/**
 * @param names of the axes, one for each dimension, then the objective's
 * @param better whether more or less of the objective is better
 */
export function parallelCoordinates(
  space: readonly Dimension[],
  trials: readonly DrawnTrial[],
  { names, goal }: { names: readonly string[]; goal: "maximize" | "minimize" },
): string {
  const gap = Math.max(110, Math.min(220, 860 / space.length));
  const width = LEFT + gap * space.length + 110;
  const range = span(trials.flatMap(({ value }) => value ?? []));
  const px = (axis: number) => LEFT + gap * axis;
  const py = (place: number) => BOTTOM - place * (BOTTOM - TOP);
  const placeOfValue = (value: number) => (value - range[0]) / (range[1] - range[0]);
  const goodOf = (value: number) => (goal === "maximize" ? placeOfValue(value) : 1 - placeOfValue(value));

  const lines = [...trials]
    .sort((a, b) => (a.value === null ? -1 : goodOf(a.value)) - (b.value === null ? -1 : goodOf(b.value))) // the best on top
    .map(({ params, value, dashed, label }) => {
      const places = space.map((dimension) => placeOf(dimension, params[dimension.knob]));
      const all = value === null ? places : [...places, placeOfValue(value)];
      const path = all.map((place, axis) => `${axis === 0 ? "M" : "L"}${fixed(px(axis))} ${fixed(py(place))}`).join("");
      const color = value === null ? "#999" : colorOf(goodOf(value));
      const dashes = value === null ? ` stroke-dasharray="2 4"` : dashed ? ` stroke-dasharray="7 5"` : "";
      const look = `stroke="${color}" stroke-width="2" stroke-linejoin="round" opacity="0.8"${dashes}`;
      return `<path class="trial" d="${path}" fill="none" ${look}><title>${escapeXml(label)}</title></path>`;
    });
  const axes = [
    ...space.map((dimension) => marksOf(dimension)),
    ticks(...range).map((value) => mark(value, placeOfValue(value))),
  ];
  const drawn = axes.flatMap((marks, axis) => [
    `<line x1="${px(axis)}" y1="${TOP}" x2="${px(axis)}" y2="${BOTTOM}" stroke="${TEXT}"/>`,
    text(px(axis), axis % 2 === 0 ? TOP - 34 : TOP - 16, names[axis] ?? "", `text-anchor="middle" font-weight="bold"`),
    ...marks.map(({ label, place }) =>
      text(px(axis) - 6, py(place) + 4, label, `text-anchor="end" font-size="11" ${HALO}`),
    ),
    ...marks.map(({ place }) => `<circle cx="${px(axis)}" cy="${fixed(py(place))}" r="2" fill="${TEXT}"/>`),
  ]);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${fixed(width)} ${HEIGHT}" width="${fixed(width)}" height="${HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="12">`,
    "<title>Settings and objective of every trial</title>",
    ...lines,
    ...drawn,
    "</svg>",
  ].join("\n");
}

/** A colour for how good a trial was, 0 to 1. */
export function colorOf(good: number): string {
  const at = Math.min(1, Math.max(0, good)) * (RAMP.length - 1);
  const i = Math.min(RAMP.length - 2, Math.floor(at));
  const part = (hex: string, channel: number) => Number.parseInt(hex.slice(1 + 2 * channel, 3 + 2 * channel), 16);
  const mix = (channel: number) => {
    const [from, to] = [part(RAMP[i] as string, channel), part(RAMP[i + 1] as string, channel)];
    return Math.round(from + (at - i) * (to - from));
  };
  return `rgb(${mix(0)},${mix(1)},${mix(2)})`;
}

interface Mark {
  label: string;
  place: number;
}

function mark(value: number, place: number): Mark {
  return { label: String(value), place };
}

/** What stands beside an axis: the values of a choice, round numbers or powers of ten of a range. */
function marksOf(dimension: Dimension): Mark[] {
  if (dimension.kind === "choice")
    return dimension.values.map((value) => ({ label: short(value), place: placeOf(dimension, value) }));
  const { min, max, log } = dimension;
  const inside = (value: number) => value > min * (1 + 1e-9) && value < max * (1 - 1e-9);
  const round = log ? powers(min, max).filter(inside) : ticks(min, max).filter((value) => value > min && value < max);
  const near = (value: number, other: number) => Math.abs(placeOf(dimension, value) - placeOf(dimension, other)) < 0.06;
  const middle = round.filter((value) => !near(value, min) && !near(value, max));
  const values = middle.length > 0 || !log ? [min, ...middle, max] : [min, fromUnit(dimension, 0.5), max];
  return values.map((value) => mark(value, placeOf(dimension, value)));
}

function powers(min: number, max: number): number[] {
  const first = Math.ceil(Math.log10(min) - 1e-9);
  const last = Math.floor(Math.log10(max) + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(`1e${first + i}`));
}

function short(value: unknown): string {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length <= 14 ? text : `${text.slice(0, 13)}…`;
}
