/** From groups of completions to the packs that go through the model one after the other, with what the loss needs per token. */

import type { Config } from "../config/schema.ts";
import { invariant } from "../errors.ts";
import { type Packed, type PackedGroup, packGroups } from "../model/packed.ts";
import type { RolloutGroup } from "../types.ts";

/** One forward and backward pass. The arrays run over its completion tokens (Tc), in the order of `packed.targets`. */
export interface TrainPack {
  packed: Packed;
  /** Share of each token in the loss of the whole batch; over all packs they sum to 1. */
  weights: Float32Array; // [Tc]
  advantages: Float32Array; // [Tc]
  /** What the sampler said, untempered, nats. */
  samplerLogprobs: Float32Array; // [Tc]
  sampleIds: string[];
}

/**
 * Packs a batch. With `sharedPrefix` a group is one unit and its prompt is computed once; without, each completion is a unit of its own
 * with its prompt before it: the plain path, equal in loss and gradient.
 * Weights: "sequence" 1 / (N * Lc), a mean over a completion's tokens, then over the N completions of the batch (the seed's);
 * "token" 1 / T, a mean over the T completion tokens of the batch. N and T are those of the batch, not of a pack.
 */
export function packBatch(groups: readonly RolloutGroup[], config: Config["trainer"]): TrainPack[] {
  const completions = groups.flatMap((group) => group.completions);
  const totalTokens = completions.reduce((sum, completion) => sum + completion.ids.length, 0);
  const weightOf = (length: number) =>
    config.lossAggregation === "sequence" ? 1 / (completions.length * length) : 1 / totalTokens;

  const units = config.sharedPrefix ? [...groups] : groups.flatMap(oneByOne);
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
      sampleIds: unitsOfPack.map((unit) => unit.prompt.sample.id),
    };
    let start = 0;
    for (const { completion, advantage } of members) {
      const end = start + completion.ids.length;
      pack.weights.fill(weightOf(completion.ids.length), start, end);
      pack.advantages.fill(advantage, start, end);
      pack.samplerLogprobs.set(completion.logprobs, start);
      start = end;
    }
    return pack;
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

type Unit = Pick<RolloutGroup, "prompt" | "completions" | "advantages">;

function oneByOne({ prompt, completions, advantages }: Unit): Unit[] {
  return completions.map((completion, i) => ({
    prompt,
    completions: [completion],
    advantages: [advantages[i] as number],
  }));
}

function unitTokens({ prompt, completions }: Unit): number {
  return completions.reduce((sum, completion) => sum + completion.ids.length, prompt.inputIds.length);
}

function toPackedGroup({ prompt, completions }: Unit): PackedGroup {
  return { prompt, completions: completions.map((completion) => completion.ids) };
}
