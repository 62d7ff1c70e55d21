/** Parzen estimators of one dimension: how likely each value is, by where trials have been. */

import { normal, type RandomKey, uniform } from "../random.ts";
import { type Choice, fromUnit, type Range, toUnit } from "./space.ts";

export interface Estimator {
  /** One value by its keys. */
  draw(...keys: RandomKey[]): unknown;
  /** Log of its density on the dimension's scale from 0 to 1, or of its probability. */
  logDensity(value: unknown): number;
}

/** Each value counts once more than trials have had it: none is ever ruled out. */
export function choiceEstimator({ values }: Choice, observed: readonly unknown[]): Estimator {
  const texts = values.map((value) => JSON.stringify(value));
  const counts = texts.map((text) => observed.filter((value) => JSON.stringify(value) === text).length);
  const probabilities = counts.map((count) => (count + 1) / (observed.length + values.length));
  return {
    draw(...keys) {
      const at = uniform(...keys);
      let below = 0;
      for (const [i, probability] of probabilities.entries()) {
        below += probability;
        if (at < below) return values[i];
      }
      return values.at(-1);
    },
    logDensity: (value) => Math.log(probabilities[texts.indexOf(JSON.stringify(value))] ?? 1e-12),
  };
}

/** Draws outside of the range are drawn again at most so often; then the range's middle stands in. */
const ATTEMPTS = 100;

/**
 * A mixture of normal distributions cut off at the range's ends: one about each trial, as wide as the larger distance to its neighbours
 * (Bergstra et al. 2011, section 4.2), and one over the whole range.
 */
export function rangeEstimator(range: Range, observed: readonly number[]): Estimator {
  const centers = [0.5, ...observed.map((value) => toUnit(range, value))];
  const widths = widthsOf(centers);
  const masses = centers.map((center, i) => between(center, widths[i] as number));
  return {
    draw(...keys) {
      const component = Math.min(centers.length - 1, Math.floor(uniform(...keys, "component") * centers.length));
      for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
        const at = (centers[component] as number) + (widths[component] as number) * normal(...keys, attempt);
        if (at >= 0 && at <= 1) return fromUnit(range, at);
      }
      return fromUnit(range, 0.5);
    },
    logDensity(value) {
      const at = toUnit(range, value as number);
      const densities = centers.map((center, i) => {
        const width = widths[i] as number;
        return Math.exp(-0.5 * ((at - center) / width) ** 2) / (width * (masses[i] as number) * Math.sqrt(2 * Math.PI));
      });
      return Math.log(densities.reduce((sum, density) => sum + density, 0) / centers.length + 1e-300);
    },
  };
}

/** Widths of the components, the first of which is the whole range's. */
function widthsOf(centers: readonly number[]): number[] {
  const narrowest = 1 / Math.min(100, 1 + centers.length);
  const sorted = centers.map((center, i) => ({ center, i })).sort((a, b) => a.center - b.center || a.i - b.i);
  const widths: number[] = [];
  for (const [place, { center, i }] of sorted.entries()) {
    const left = center - (sorted[place - 1]?.center ?? 0);
    const right = (sorted[place + 1]?.center ?? 1) - center;
    widths[i] = i === 0 ? 1 : Math.min(1, Math.max(narrowest, left, right));
  }
  return widths;
}

/** How much of a normal distribution lies between 0 and 1. */
function between(center: number, width: number): number {
  return normalBelow((1 - center) / width) - normalBelow(-center / width);
}

/** The standard normal distribution function, to 1.5e-7 (Abramowitz and Stegun 7.1.26). */
function normalBelow(z: number): number {
  const x = Math.abs(z) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * x);
  const poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const erf = 1 - poly * Math.exp(-x * x);
  return z >= 0 ? 0.5 * (1 + erf) : 0.5 * (1 - erf);
}
