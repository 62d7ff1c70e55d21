/** One step's batch over all ranks: which questions are whose, and what all ranks know of the others' share. */

import type { Ranks } from "../distributed/ranks.ts";
import type { Prompt, RolloutGroup, Sample } from "../types.ts";

/** Places in a step's list of `count` questions that a rank asks: every world-th one. */
export function placesOf({ rank, world }: Pick<Ranks, "rank" | "world">, count: number): number[] {
  return Array.from({ length: count }, (_, place) => place).filter((place) => place % world === rank);
}

/** A sample and its place in the list of what a step asks. */
export interface PlacedSample {
  place: number;
  sample: Sample;
}

/** This rank's share of a step's questions; those that could not be used are left out. */
export interface StepPrompts {
  prompts: Prompt[];
  places: number[]; // of each prompt in the step's list
  total: number; // prompts of all ranks
}

/** The items of all ranks in the order of the step's list, whoever holds which: the order in which one rank alone would have them. */
export function gatherInOrder<T>(ranks: Ranks, places: readonly number[], items: readonly T[]): T[] {
  if (ranks.world === 1) return [...items];
  return ranks
    .gather(items.map((item, i) => ({ item, place: places[i] as number })))
    .flat()
    .sort((a, b) => a.place - b.place)
    .map(({ item }) => item);
}

/** The groups of all ranks, and which of them are this rank's. */
export interface WholeBatch {
  /** As advantages, weights and metrics need them: of several ranks without pictures and videos. */
  batch: RolloutGroup[];
  /** The entries of `batch` that stand for this rank's groups, in the order of those. */
  own: RolloutGroup[];
}

export function gatherGroups(ranks: Ranks, places: readonly number[], groups: readonly RolloutGroup[]): WholeBatch {
  if (ranks.world === 1) return { batch: [...groups], own: [...groups] };
  const own = groups.map((group) => ({ ...group, prompt: { ...group.prompt, images: [], videos: [] } }));
  return { batch: gatherInOrder(ranks, places, own), own };
}
