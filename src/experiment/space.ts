/** The space of a sweep: which knobs vary, over which values, checked by the config's schema. */

import { z } from "zod";
import type { Config } from "../config/schema.ts";
import { nodeAt } from "../config/schema-tree.ts";
import { ConfigError } from "../errors.ts";
import { assignment } from "./spec.ts";

const values = z.array(z.unknown()).min(1);
const range = z.strictObject({
  min: z.number(),
  max: z.number(),
  scale: z.enum(["linear", "log"]).default("linear"),
  step: z.number().positive().optional(),
  points: z.number().int().min(2).optional(),
});

/** `[a, b]`, `{ values: [a, b] }` or `{ min, max, scale: linear | log, step, points }`. */
export const spaceSchema = z
  .record(
    z.string(),
    z.union([values, z.strictObject({ values }), range], {
      error: "expected [a, b], { values: [a, b] } or { min, max, scale: linear or log, step, points } with numbers",
    }),
  )
  .refine((space) => Object.keys(space).length > 0, "names no knob to vary");

/** A knob with a list of values: an order among them means nothing. */
export interface Choice {
  knob: string;
  kind: "choice";
  values: unknown[];
}

/** A knob with a range of numbers. */
export interface Range {
  knob: string;
  kind: "range";
  min: number;
  max: number;
  log: boolean;
  /** Values are min, min + step, ...; undefined: any. */
  step: number | undefined;
  /** How many values a grid takes of it, evenly spread on its scale; undefined: all, where there is a step. */
  points: number | undefined;
}

export type Dimension = Choice | Range;
/** A setting: each knob of the space with a value. */
export type Params = Record<string, unknown>;

/**
 * The space that a file describes.
 * @param load the config with some assignments over the file's own: what says whether a knob exists
 * @throws ConfigError naming the file and the knob, and the nearest one where it does not exist
 */
export function readSpace(
  file: string,
  space: z.infer<typeof spaceSchema>,
  load: (set: string[]) => Config,
): Dimension[] {
  return Object.entries(space).map(([knob, given]) => {
    const at = `${file}: space.${knob}`;
    const path = knob.replaceAll(/\[(\d+)\]/g, ".$1").split(".");
    const node = nodeAt(path);
    if (node === undefined) throw unknownKnob(at, knob, load);
    const refuse = (problem: string) => new ConfigError(`${at}: ${problem}`, { knob });
    /** What is wrong with a value by itself; how values go together is asked of each setting. */
    const problemOf = (value: unknown) => {
      const result = (node.schema as unknown as z.ZodType).safeParse(value);
      return result.success ? undefined : result.error.issues[0]?.message.replace(/^Invalid (input|option): /, "");
    };
    if (Array.isArray(given) || "values" in given) {
      const choices = Array.isArray(given) ? given : given.values;
      for (const value of choices) {
        const problem = problemOf(value);
        if (problem !== undefined) throw refuse(`${JSON.stringify(value)}: ${problem}`);
      }
      if (new Set(choices.map((value) => JSON.stringify(value))).size < choices.length)
        throw refuse("the same value twice");
      return { knob, kind: "choice", values: choices };
    }
    const { min, max, scale, points } = given;
    if (min >= max) throw refuse(`min ${min} is not below max ${max}`);
    if (scale === "log" && min <= 0) throw refuse(`a log scale begins above 0, not at ${min}`);
    for (const value of [min, max]) {
      const problem = problemOf(value);
      if (problem !== undefined) throw refuse(`${value}: ${problem}`);
    }
    const whole = problemOf(Math.floor(min) + 0.5) !== undefined && problemOf(Math.floor(min) + 1) === undefined;
    const step = given.step ?? (whole ? 1 : undefined);
    if (whole && !(Number.isInteger(min) && Number.isInteger(step)))
      throw refuse("takes whole numbers: min and step must be such");
    return { knob, kind: "range", min, max, log: scale === "log", step, points };
  });
}

function unknownKnob(at: string, knob: string, load: (set: string[]) => Config): ConfigError {
  try {
    load([assignment(knob, 0)]);
  } catch (error) {
    if (error instanceof ConfigError) {
      const { suggestion } = error.details;
      const hint = suggestion === undefined ? "; docs/config.md lists every knob" : `; did you mean ${suggestion}?`;
      return new ConfigError(`${at}: unknown knob ${knob}${hint}`, { knob, suggestion });
    }
    throw error;
  }
  return new ConfigError(`${at}: not a knob`, { knob });
}

/** The values of a dimension, where they can be counted. */
export function valuesOf(dimension: Dimension): unknown[] | undefined {
  if (dimension.kind === "choice") return dimension.values;
  const { min, max, step, points } = dimension;
  if (points !== undefined)
    return [...new Set(Array.from({ length: points }, (_, i) => fromUnit(dimension, (i + 0.5) / points, true)))];
  if (step === undefined) return undefined;
  return Array.from({ length: stepsOf(min, max, step) }, (_, i) => rounded(min + i * step, dimension));
}

/** How many values a dimension has, and number `i` of them: without a list of all, of which a knob such as data.maxPixels has millions. */
function countOf(dimension: Dimension): number {
  if (dimension.kind === "range" && dimension.points === undefined && dimension.step !== undefined)
    return stepsOf(dimension.min, dimension.max, dimension.step);
  return valuesOf(dimension)?.length ?? Number.POSITIVE_INFINITY;
}

function valueAt(dimension: Dimension, i: number): unknown {
  if (dimension.kind === "range" && dimension.points === undefined && dimension.step !== undefined)
    return rounded(dimension.min + i * dimension.step, dimension);
  return valuesOf(dimension)?.[i];
}

function stepsOf(min: number, max: number, step: number): number {
  return Math.floor((max - min) / step + 1e-9) + 1;
}

/**
 * A place on a range's scale, from 0 to 1, as a value. Where values have steps each has a share of the scale about it, the first and the last too.
 * `inner` spreads the places of a grid from min to max instead.
 */
export function fromUnit(dimension: Range, unit: number, inner = false): number {
  const { min, max, step } = dimension;
  const [low, high] = inner ? scaled(dimension, min, max) : limits(dimension);
  const place = inner && dimension.points !== undefined ? stretch(unit, dimension.points) : unit;
  const at = low + place * (high - low);
  const value = dimension.log ? Math.exp(at) : at;
  const stepped = step === undefined ? value : min + Math.round((value - min) / step) * step;
  const last = step === undefined ? max : min + Math.floor((max - min) / step + 1e-9) * step;
  return Math.min(last, Math.max(min, rounded(stepped, dimension)));
}

/** Where a value lies on a range's scale, from 0 to 1. */
export function toUnit(dimension: Range, value: number): number {
  const [low, high] = limits(dimension);
  return ((dimension.log ? Math.log(value) : value) - low) / (high - low);
}

/** (i + 0.5) / n -> i / (n - 1). */
function stretch(unit: number, points: number): number {
  return (unit * points - 0.5) / (points - 1);
}

function limits(dimension: Range): [low: number, high: number] {
  const { min, max, step, log } = dimension;
  if (step === undefined) return scaled(dimension, min, max);
  const low = min - step / 2;
  return scaled(dimension, log && low <= 0 ? min / 2 : low, max + step / 2);
}

function scaled({ log }: Range, low: number, high: number): [low: number, high: number] {
  return log ? [Math.log(low), Math.log(high)] : [low, high];
}

/** Four digits tell settings apart, and can be read; steps are kept to the digit. */
function rounded(value: number, { step }: Range): number {
  return Number(value.toPrecision(step === undefined ? 4 : 12));
}

/** What is wrong with a setting that is to be tried: a knob too many or too few, a value out of its dimension; undefined where nothing is. */
export function problemOfSetting(space: readonly Dimension[], params: Params): string | undefined {
  const extra = Object.keys(params).find((knob) => space.every((dimension) => dimension.knob !== knob));
  if (extra !== undefined) return `${extra} is no knob of the space`;
  for (const dimension of space) {
    const { knob } = dimension;
    const value = params[knob];
    if (value === undefined) return `${knob} is missing`;
    const inside =
      dimension.kind === "choice"
        ? dimension.values.some((one) => JSON.stringify(one) === JSON.stringify(value))
        : typeof value === "number" && value >= dimension.min && value <= dimension.max;
    if (!inside) return `${knob}: ${JSON.stringify(value)} is not in the space`;
  }
  return undefined;
}

/** How many settings there are; infinite where a knob's values cannot be counted. */
export function sizeOf(space: readonly Dimension[]): number {
  return space.reduce((product, dimension) => product * countOf(dimension), 1);
}

/** Setting number `index` of a space that can be counted; the last knob changes fastest. */
export function settingAt(space: readonly Dimension[], index: number): Params {
  const params: [string, unknown][] = [];
  let rest = index;
  for (const dimension of [...space].reverse()) {
    const count = countOf(dimension);
    params.unshift([dimension.knob, valueAt(dimension, rest % count)]);
    rest = Math.floor(rest / count);
  }
  return Object.fromEntries(params);
}
