/** Which samples a step trains on: a pure function of the seed, so that a resumed or differently split run sees the same order. */

import { type RandomKey, randomInt, shuffled } from "../random.ts";

/**
 * Sample indices of one step. Step after step walks through permutations of the data set, one per epoch, without a gap: a step may hold the
 * end of one epoch and the start of the next.
 *
 * @param step counted from 0
 * @returns `perStep` indices in [0, datasetSize)
 */
export function sampleIndices(datasetSize: number, step: number, perStep: number, seed: number): number[] {
  if (!(datasetSize > 0)) throw new RangeError(`sampleIndices needs a data set, got ${datasetSize} samples`);
  return Array.from({ length: perStep }, (_, i) => {
    const at = step * perStep + i;
    return epochOrder(datasetSize, Math.floor(at / datasetSize), seed)[at % datasetSize]!;
  });
}

/**
 * `count` indices in [0, datasetSize) that are not in `taken`, each once, or as many as there are: a pure function of the keys and of `taken`.
 */
export function otherIndices(
  datasetSize: number,
  count: number,
  taken: ReadonlySet<number>,
  ...keys: RandomKey[]
): number[] {
  const found = new Set<number>();
  const wanted = Math.min(count, datasetSize - taken.size);
  for (let draw = 0; found.size < wanted; draw++) {
    const index = randomInt(datasetSize, ...keys, draw);
    if (!taken.has(index)) found.add(index);
  }
  return [...found];
}

// The last two permutations: a step touches at most the epochs on either side of a boundary, unless it is larger than the data set.
const recent = new Map<string, Int32Array>();

/** The permutation of one epoch. */
function epochOrder(datasetSize: number, epoch: number, seed: number): Int32Array {
  const key = `${datasetSize}:${epoch}:${seed}`;
  let order = recent.get(key);
  if (order === undefined) {
    const indices = Array.from({ length: datasetSize }, (_, i) => i);
    order = Int32Array.from(shuffled(indices, seed, "epoch", epoch));
    if (recent.size >= 2) recent.delete(recent.keys().next().value as string);
    recent.set(key, order);
  }
  return order;
}
