/** One step's batch over all ranks: what all ranks know of the others' share. */

import type { Ranks } from "../distributed/ranks.ts";
import type { Metrics, Prompt, RolloutGroup } from "../types.ts";
import { imbalance } from "./question-shares.ts";

/** This rank's share of a step's questions; those that could not be used are left out. */
export interface StepPrompts {
  prompts: Prompt[];
  places: number[]; // of each prompt in the step's list
  total: number; // prompts of all ranks
}

/** The groups of all ranks, and which of them are this rank's. */
export interface WholeBatch {
  /** As advantages, weights and metrics need them: of several ranks without pictures and videos. */
  batch: RolloutGroup[];
  /** The entries of `batch` that stand for this rank's groups, in the order of those. */
  own: RolloutGroup[];
  /** The rank of each entry of `batch`. */
  rankOf: ReadonlyMap<RolloutGroup, number>;
}

/** Groups of all ranks in the order of the step's list, whoever holds which: the order in which one rank alone would have them. */
export function gatherGroups(ranks: Ranks, places: readonly number[], groups: readonly RolloutGroup[]): WholeBatch {
  if (ranks.world === 1) return { batch: [...groups], own: [...groups], rankOf: new Map() };
  const own = groups.map((group) => ({ ...group, prompt: { ...group.prompt, images: [], videos: [] } }));
  const all = ranks
    .gather(own.map((group, i) => ({ group, place: places[i] as number })))
    .flatMap((held, rank) => held.map((one) => ({ ...one, rank })))
    .sort((a, b) => a.place - b.place);
  return {
    batch: all.map(({ group }) => group),
    own,
    rankOf: new Map(all.map(({ group, rank }) => [group, rank])),
  };
}

/** `data/token_imbalance` of several ranks: how evenly the tokens of an update, prompts and completions, lie on them. */
export function imbalanceMetrics(
  { world }: Pick<Ranks, "world">,
  batch: readonly RolloutGroup[],
  rankOf: WholeBatch["rankOf"],
): Metrics {
  if (world === 1) return {};
  const tokens: number[] = Array(world).fill(0);
  for (const group of batch) {
    const own = group.completions.reduce((sum, { ids }) => sum + ids.length, group.prompt.inputIds.length);
    tokens[rankOf.get(group) as number] = (tokens[rankOf.get(group) as number] as number) + own;
  }
  return { "data/token_imbalance": imbalance(tokens) };
}
