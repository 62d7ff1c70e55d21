/** Regression trees on a handful of trials: what the parameter-importance figures are computed from. Inputs lie in [0, 1] in each dimension. */

import { randomInt, uniform } from "../random.ts";

export interface Leaf {
  /** [low, high] in each dimension. */
  box: [low: number, high: number][];
  value: number;
}

/** Leaves of one tree: they share out the unit cube. */
export type Tree = Leaf[];

const LEAST = 2; // points of a leaf that is split

/** Trees on resampled points, each split among randomly chosen dimensions (Breiman's random forest). */
export function growForest(
  points: readonly (readonly number[])[],
  values: readonly number[],
  { trees, seed }: { trees: number; seed: number },
): Tree[] {
  const n = points.length;
  const dimensions = points[0]?.length ?? 0;
  return Array.from({ length: trees }, (_, tree) => {
    const sample = Array.from({ length: n }, (_, i) => randomInt(n, seed, "forest", tree, i));
    const leaves: Tree = [];
    let splits = 0;
    const grow = (indices: readonly number[], box: Leaf["box"]) => {
      const value = indices.reduce((sum, i) => sum + (values[i] as number), 0) / indices.length;
      const allowed = Array.from({ length: dimensions }, (_, d) => d).filter(
        (d) => dimensions === 1 || uniform(seed, "dimension", tree, splits, d) < 2 / 3,
      );
      splits++;
      const split = indices.length < LEAST ? undefined : bestSplit(points, values, indices, allowed);
      if (split === undefined) {
        leaves.push({ box, value });
        return;
      }
      const { dimension, at } = split;
      const isLeft = (i: number) => (points[i]?.[dimension] as number) < at;
      const cut = (side: 0 | 1) =>
        box.map(([low, high], d): [number, number] =>
          d !== dimension ? [low, high] : side === 0 ? [low, at] : [at, high],
        );
      grow(indices.filter(isLeft), cut(0));
      grow(
        indices.filter((i) => !isLeft(i)),
        cut(1),
      );
    };
    grow(
      sample,
      Array.from({ length: dimensions }, () => [0, 1]),
    );
    return leaves;
  });
}

/** The cut, halfway between two neighbours, that leaves the least squared error; undefined where none makes it smaller. */
function bestSplit(
  points: readonly (readonly number[])[],
  values: readonly number[],
  indices: readonly number[],
  dimensions: readonly number[],
): { dimension: number; at: number } | undefined {
  const total = indices.reduce((sum, i) => sum + (values[i] as number), 0);
  let best: { dimension: number; at: number; gain: number } | undefined;
  for (const dimension of dimensions) {
    const at = (i: number) => points[i]?.[dimension] as number;
    const sorted = [...indices].sort((a, b) => at(a) - at(b) || a - b);
    let left = 0;
    for (let k = 1; k < sorted.length; k++) {
      const [before, here] = [sorted[k - 1] as number, sorted[k] as number];
      left += values[before] as number;
      if (at(before) === at(here)) continue;
      const right = total - left;
      const gain = (left * left) / k + (right * right) / (sorted.length - k) - (total * total) / sorted.length;
      if (gain > 1e-12 && (best === undefined || gain > best.gain))
        best = { dimension, at: (at(before) + at(here)) / 2, gain };
    }
  }
  return best;
}
