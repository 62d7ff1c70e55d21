/** How much each token counts in the loss. The denominators are of the batch of all ranks, never of a pack: however a step is cut, it is one sum. */

import type { Config } from "../config/schema.ts";
import type { Completion, RolloutGroup } from "../types.ts";

type Knobs = Pick<Config["trainer"], "lossAggregation" | "lossLength" | "maskTruncated">;

/** Whether a completion is part of the loss: all are but, with trainer.maskTruncated, those that ran into the limit on new tokens. */
export function countsInLoss({ finish }: Pick<Completion, "finish">, { maskTruncated }: Readonly<Knobs>): boolean {
  return !(maskTruncated && finish === "length");
}

/**
 * The weight of each token of a completion, over N completions that count, T tokens in all, Lc of its own:
 *   sequence   1 / (N Lc)           a mean over a completion's tokens, then over completions (the seed's)
 *   token      1 / T                a mean over tokens
 *   constant   1 / (N lossLength)   a sum over tokens, divided by what no completion has a say in
 * One that does not count has weight 0, and the means are those of a batch without it.
 * @param batch the groups of all ranks
 */
export function tokenWeights(
  batch: readonly Pick<RolloutGroup, "completions">[],
  config: Readonly<Knobs>,
): (completion: Pick<Completion, "ids" | "finish">) => number {
  const counted = batch
    .flatMap(({ completions }) => completions)
    .filter((completion) => countsInLoss(completion, config));
  const tokens = counted.reduce((sum, { ids }) => sum + ids.length, 0);
  const share = (length: number) => {
    switch (config.lossAggregation) {
      case "sequence":
        return 1 / (counted.length * length);
      case "token":
        return 1 / tokens;
      case "constant":
        return 1 / (counted.length * config.lossLength);
    }
  };
  return (completion) => (countsInLoss(completion, config) ? share(completion.ids.length) : 0);
}
