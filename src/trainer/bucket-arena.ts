/** Memory that buckets take turns in, one after the other as a pass comes to them: plain arithmetic, no tensor. */

import type { Bucket, BucketLayout } from "./flat-layout.ts";

export class BucketArena {
  /** Elements. */
  readonly size: number;
  /** Where each bucket has its place. */
  readonly offsets: readonly number[];
  readonly #buckets: readonly Bucket[];

  /**
   * @param order in which a pass comes to the buckets: "forward" as the layout has them, "backward" from the last to the first
   *
   * There is room for the largest bucket, and for two layers, so that one is on its way while the other is used. Places go round; a bucket that is in
   * use throughout a pass has its own behind them.
   */
  constructor(layout: BucketLayout, order: "forward" | "backward") {
    const { buckets, lasting } = layout;
    const ring = ringElements(layout);
    const offsets = buckets.map(() => ring); // what does not take turns
    let end = 0;
    for (const i of order === "forward" ? buckets.keys() : [...buckets.keys()].reverse()) {
      const { part, size } = buckets[i] as Bucket;
      if (part === lasting) continue;
      const offset = end + size > ring ? 0 : end;
      offsets[i] = offset;
      end = offset + size;
    }
    this.#buckets = buckets;
    this.offsets = offsets;
    this.size = arenaElements(layout);
  }

  /** Where an element of the flat layout has its place. */
  place(flat: number): number {
    const i = this.#buckets.findLastIndex(({ begin }) => begin <= flat);
    return flat - (this.#buckets[i] as Bucket).begin + (this.offsets[i] as number);
  }

  /** Whether two buckets cannot be there at the same time. */
  collide(i: number, j: number): boolean {
    const [a, b] = [this.offsets[i] as number, this.offsets[j] as number];
    return a < b + (this.#buckets[j] as Bucket).size && b < a + (this.#buckets[i] as Bucket).size;
  }
}

/** Elements of the memory that the buckets of a layout need. */
export function arenaElements(layout: BucketLayout): number {
  const { buckets, lasting } = layout;
  return ringElements(layout) + (buckets.find(({ part }) => part === lasting)?.size ?? 0);
}

/** A layer is a part of the model that there are several of. */
function ringElements({ buckets, lasting }: BucketLayout): number {
  const needs = buckets
    .filter(({ part }) => part !== lasting)
    .map(({ part, size }) => (/\.\d+$/.test(part) ? 2 * size : size));
  return Math.max(0, ...needs);
}
