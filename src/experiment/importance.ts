/**
 * How much of the differences between trials each knob explains by itself: functional ANOVA on a random forest (Hutter, Hoos and
 * Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014). For a tree f over the unit cube,
 *
 *   a_d(x) = mean of f where dimension d is x,   importance of d = Var(a_d) / Var(f),
 *
 * exact sums over the tree's leaves, averaged over trees. What the importances leave of 1 is due to knobs together.
 */

import { growForest, type Tree } from "./forest.ts";
import { type Dimension, type Params, toUnit } from "./space.ts";

export interface Importance {
  knob: string;
  /** Share of the variance, 0 to 1. */
  share: number;
  /** Spearman's rank correlation of knob and value: + where more of it goes with a greater value; null where its values have no order. */
  correlation: number | null;
}

const TREES = 64;
/** Fewer trials than this say nothing. */
export const LEAST_TRIALS = 4;

/** Knobs by importance, the greatest first; empty with fewer than four trials or where all have the same value. */
export function importances(
  space: readonly Dimension[],
  trials: readonly { params: Params; value: number }[],
): Importance[] {
  const values = trials.map(({ value }) => value);
  if (trials.length < LEAST_TRIALS || new Set(values).size < 2) return [];
  const points = trials.map(({ params }) => space.map((dimension) => placeOf(dimension, params[dimension.knob])));
  const forest = growForest(points, values, { trees: TREES, seed: 0 });
  return space
    .map((dimension, d) => {
      const shares = forest.map((tree) => shareOf(tree, d));
      return {
        knob: dimension.knob,
        share: shares.reduce((sum, share) => sum + share, 0) / shares.length,
        correlation: isOrdered(dimension)
          ? spearman(
              trials.map(({ params }) => params[dimension.knob] as number),
              values,
            )
          : null,
      };
    })
    .sort((a, b) => b.share - a.share);
}

function isOrdered(dimension: Dimension): boolean {
  return dimension.kind === "range" || dimension.values.every((value) => typeof value === "number");
}

/** Where a value lies in its dimension, 0 to 1; the values of a choice lie side by side. */
export function placeOf(dimension: Dimension, value: unknown): number {
  if (dimension.kind === "range") return Math.min(1, Math.max(0, toUnit(dimension, value as number)));
  const texts = dimension.values.map((one) => JSON.stringify(one));
  return (texts.indexOf(JSON.stringify(value)) + 0.5) / texts.length;
}

function shareOf(tree: Tree, d: number): number {
  const volume = (box: Tree[number]["box"], without = -1) =>
    box.reduce((product, [low, high], i) => (i === without ? product : product * (high - low)), 1);
  const mean = tree.reduce((sum, { box, value }) => sum + volume(box) * value, 0);
  const variance = tree.reduce((sum, { box, value }) => sum + volume(box) * (value - mean) ** 2, 0);
  if (variance <= 0) return 0;
  const cuts = [...new Set(tree.flatMap(({ box }) => box[d] as [number, number]))].sort((a, b) => a - b);
  let explained = 0;
  for (let i = 1; i < cuts.length; i++) {
    const [low, high] = [cuts[i - 1] as number, cuts[i] as number];
    const middle = (low + high) / 2;
    const here = tree.filter(({ box }) => (box[d]?.[0] as number) < middle && middle < (box[d]?.[1] as number));
    const marginal = here.reduce((sum, { box, value }) => sum + volume(box, d) * value, 0);
    explained += (high - low) * (marginal - mean) ** 2;
  }
  return explained / variance;
}

/** Spearman's rank correlation; equal values share their mean rank; 0 where one side is all equal. */
export function spearman(a: readonly number[], b: readonly number[]): number {
  const [ranksA, ranksB] = [ranksOf(a), ranksOf(b)];
  const mean = (a.length - 1) / 2;
  const product = (x: readonly number[], y: readonly number[]) =>
    x.reduce((sum, value, i) => sum + (value - mean) * ((y[i] as number) - mean), 0);
  const spread = Math.sqrt(product(ranksA, ranksA) * product(ranksB, ranksB));
  return spread === 0 ? 0 : product(ranksA, ranksB) / spread;
}

function ranksOf(values: readonly number[]): number[] {
  return values.map((value) => {
    const below = values.filter((other) => other < value).length;
    const equal = values.filter((other) => other === value).length;
    return below + (equal - 1) / 2;
  });
}
