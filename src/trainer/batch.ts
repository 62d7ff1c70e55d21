/** From groups of completions to the packs that go through the model one after the other, with what the loss needs per token. */

import type { Config } from "../config/schema.ts";
import { invariant } from "../errors.ts";
import { type Packed, type PackedGroup, packGroups } from "../model/packed.ts";
import type { Completion, RolloutGroup } from "../types.ts";
import { tokenWeights } from "./token-weights.ts";

/** One forward and backward pass. The arrays run over its completion tokens (Tc), in the order of `packed.targets`. */
export interface TrainPack {
  packed: Packed;
  /** Share of each token in the loss of the whole batch (token-weights.ts). */
  weights: Float32Array; // [Tc]
  advantages: Float32Array; // [Tc]
  /** What the sampler said, untempered, nats; NaN for padding that counts (compat.unmaskedSecondEos). */
  samplerLogprobs: Float32Array; // [Tc]
  lengths: number[]; // of its completions, in the order of their tokens; they sum to Tc
  sampleIds: string[];
  /** Of each of its units: the places of its completions in their group. */
  completionIndices: number[][];
}

/**
 * Packs a batch. With `sharedPrefix` a group is one unit and its prompt is computed once; without, each completion is a unit of its own
 * with its prompt before it: the plain path, equal in loss and gradient.
 * @param batch the groups of all ranks, where `groups` are the share of one
 */
export function packBatch(
  groups: readonly RolloutGroup[],
  config: Config["trainer"],
  batch: readonly Pick<RolloutGroup, "completions">[] = groups,
): TrainPack[] {
  const weightOf = tokenWeights(batch, config);
  const units: Unit[] = config.sharedPrefix ? [...groups] : groups.flatMap(oneByOne);
  return splitByTokens(units, unitTokens, config.tokensPerPack).map((unitsOfPack) => {
    const packed = packGroups(unitsOfPack.map(toPackedGroup));
    const members = unitsOfPack.flatMap((unit) =>
      unit.completions.map((completion, i) => ({ completion, advantage: unit.advantages[i] as number })),
    );
    const tokens = members.reduce((sum, { completion }) => sum + completion.ids.length, 0);
    invariant(tokens === packed.targets.length, `a pack has ${packed.targets.length} targets for ${tokens} tokens`);
    const pack: TrainPack = {
      packed,
      weights: new Float32Array(tokens),
      advantages: new Float32Array(tokens),
      samplerLogprobs: new Float32Array(tokens),
      lengths: members.map(({ completion }) => completion.ids.length),
      sampleIds: unitsOfPack.map((unit) => unit.prompt.sample.id),
      completionIndices: unitsOfPack.map((unit) => unit.completions.map((_, i) => i + (unit.first ?? 0))),
    };
    let start = 0;
    for (const { completion, advantage } of members) {
      const end = start + completion.ids.length;
      pack.weights.fill(weightOf(completion), start, end);
      pack.advantages.fill(advantage, start, end);
      pack.samplerLogprobs.set(completion.logprobs, start);
      start = end;
    }
    return pack;
  });
}

/**
 * The groups as the seed's loss sees them. Its mask of a right-padded row [G, longest completion] ends at the row's first `first` token; a row
 * that ends by another end token has none, so that end token and all padding behind it count: in the loss, in the KL penalty, and in the number of
 * tokens that a sequence's mean is taken over. Such completions are filled up with `pad`; the sampler said nothing of these tokens (NaN).
 * Texts and rewards are not touched.
 */
export function unmaskSecondEos(
  groups: readonly RolloutGroup[],
  { first, pad }: { first: number; pad: number },
): RolloutGroup[] {
  return groups.map((group) => {
    const longest = Math.max(...group.completions.map(({ ids }) => ids.length));
    const completions = group.completions.map((completion): Completion => {
      const { ids, logprobs } = completion;
      if (completion.finish !== "stop" || ids.at(-1) === first || ids.length === longest) return completion;
      const filled = new Int32Array(longest).fill(pad);
      filled.set(ids);
      const said = new Float32Array(longest).fill(Number.NaN);
      said.set(logprobs);
      return { ...completion, ids: filled, logprobs: said };
    });
    return { ...group, completions };
  });
}

/** Splits units, kept in order, into runs of at most `budget` tokens; a unit above the budget gets a run of its own. */
export function splitByTokens<T>(units: readonly T[], tokensOf: (unit: T) => number, budget: number): T[][] {
  const runs: T[][] = [];
  let used = Number.POSITIVE_INFINITY;
  for (const unit of units) {
    const tokens = tokensOf(unit);
    if (used + tokens > budget) {
      runs.push([]);
      used = 0;
    }
    runs.at(-1)?.push(unit);
    used += tokens;
  }
  return runs;
}

type Unit = Pick<RolloutGroup, "prompt" | "completions" | "advantages"> & { first?: number }; // the place in the group of its first completion

function oneByOne({ prompt, completions, advantages }: Unit): Unit[] {
  return completions.map((completion, i) => ({
    prompt,
    completions: [completion],
    advantages: [advantages[i] as number],
    first: i,
  }));
}

function unitTokens({ prompt, completions }: Unit): number {
  return completions.reduce((sum, completion) => sum + completion.ids.length, prompt.inputIds.length);
}

function toPackedGroup({ prompt, completions }: Unit): PackedGroup {
  return { prompt, completions: completions.map((completion) => completion.ids) };
}
