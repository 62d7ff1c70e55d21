/**
 * What a sweep tries next: grid, random, or TPE, the tree-structured Parzen estimator of Bergstra, Bardenet, Bengio and Kegl, "Algorithms for
 * Hyper-Parameter Optimization" (NeurIPS 2011, section 4). TPE models where good and bad trials lie,
 *
 *   p(x | y) = l(x) if y is among the best share gamma of all trials, g(x) otherwise,
 *
 * under which the expected improvement is (its equation 3)
 *
 *   EI(x)  proportional to  (gamma + (1 - gamma) g(x) / l(x))^-1,
 *
 * so candidates are drawn from l and the one with the greatest l(x) / g(x) is tried. A candidate is a whole setting; l and g are products over its knobs.
 *
 * Every draw is a function of the sweep's seed, the trial's number and the knob.
 */

import { z } from "zod";
import { type RandomKey, uniform } from "../random.ts";
import { choiceEstimator, type Estimator, rangeEstimator } from "./parzen.ts";
import { type Dimension, fromUnit, type Params, settingAt, sizeOf } from "./space.ts";

export const tpeSchema = z.strictObject({
  startup: z.number().int().positive().default(8).meta({ description: "Trials drawn at random before the model." }),
  gamma: z.number().gt(0).lt(1).default(0.2).meta({ description: "Share of the trials that count as good." }),
  candidates: z.number().int().positive().default(24).meta({ description: "Draws of which the best is tried." }),
});

export type Tpe = z.infer<typeof tpeSchema>;

export interface Search {
  kind: "grid" | "random" | "tpe";
  space: readonly Dimension[];
  seed: number;
  tpe: Tpe;
  /** Settings to try before any other, such as the one that is in use. */
  first: readonly Params[];
  /** Whether a setting makes sense as a whole. */
  isValid: (params: Params) => boolean;
}

/** Draws for one trial before the settings that are left are gone through instead. */
const ATTEMPTS = 200;

/** A grid's settings that make sense, in order: at most `count`, among the first `within` of all. */
export function gridSettings(
  { space, isValid }: Pick<Search, "space" | "isValid">,
  { count, within }: { count: number; within: number },
): Params[] {
  const settings: Params[] = [];
  const end = Math.min(within, sizeOf(space));
  for (let index = 0; index < end && settings.length < count; index++) {
    const params = settingAt(space, index);
    if (isValid(params)) settings.push(params);
  }
  return settings;
}

/**
 * The setting of trial number `trial`, or undefined where all have been tried. None is tried twice.
 * @param tried settings of the trials before
 * @param ranked settings of those among them whose outcome counts, the best first
 */
export function propose(
  search: Search,
  trial: number,
  tried: readonly Params[],
  ranked: readonly Params[],
): Params | undefined {
  const { kind, space, seed, isValid } = search;
  const known = new Set(tried.map(keyOf));
  const isNew = (params: Params) => !known.has(keyOf(params)) && isValid(params);
  if (trial < search.first.length) return search.first[trial];
  if (kind === "grid") return nextOfGrid(space, isNew);
  const modelled = kind === "tpe" && ranked.length >= search.tpe.startup;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const keys = [seed, "sweep", trial, attempt];
    const params = modelled ? modelledSetting(search, ranked, keys) : randomSetting(space, keys);
    if (isNew(params)) return params;
  }
  return Number.isFinite(sizeOf(space)) ? nextOfGrid(space, isNew) : undefined;
}

function nextOfGrid(space: readonly Dimension[], isNew: (params: Params) => boolean): Params | undefined {
  const size = sizeOf(space);
  for (let index = 0; index < size; index++) {
    const params = settingAt(space, index);
    if (isNew(params)) return params;
  }
  return undefined;
}

function keyOf(params: Params): string {
  return JSON.stringify(Object.entries(params).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function randomSetting(space: readonly Dimension[], keys: readonly RandomKey[]): Params {
  return Object.fromEntries(
    space.map((dimension) => {
      const draw = uniform(...keys, dimension.knob);
      const value =
        dimension.kind === "range"
          ? fromUnit(dimension, draw)
          : dimension.values[Math.floor(draw * dimension.values.length)];
      return [dimension.knob, value];
    }),
  );
}

function modelledSetting({ space, tpe }: Search, ranked: readonly Params[], keys: readonly RandomKey[]): Params {
  const good = Math.max(1, Math.ceil(tpe.gamma * ranked.length));
  const models = space.map((dimension) => ({
    knob: dimension.knob,
    l: estimate(dimension, ranked.slice(0, good)),
    g: estimate(dimension, ranked.slice(good)),
  }));
  let best: { params: Params; gain: number } | undefined;
  for (let candidate = 0; candidate < tpe.candidates; candidate++) {
    const params = Object.fromEntries(models.map(({ knob, l }) => [knob, l.draw(...keys, knob, candidate)]));
    const gain = models.reduce(
      (sum, { knob, l, g }) => sum + l.logDensity(params[knob]) - g.logDensity(params[knob]),
      0,
    );
    if (best === undefined || gain > best.gain) best = { params, gain };
  }
  return best?.params as Params;
}

function estimate(dimension: Dimension, settings: readonly Params[]): Estimator {
  const observed = settings.map((params) => params[dimension.knob]);
  return dimension.kind === "choice"
    ? choiceEstimator(dimension, observed)
    : rangeEstimator(dimension, observed as number[]);
}
