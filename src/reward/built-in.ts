/** Every reward that needs no code of the user's: text in, numbers out, in this thread. */

import { type AccuracyOptions, accuracy } from "./accuracy.ts";
import { format } from "./format.ts";
import { math } from "./math.ts";
import type { RewardArgs } from "./reward-function.ts";

export type BuiltIn = (args: RewardArgs) => number[] | Promise<number[]>;

export function builtInRewards(options: AccuracyOptions): Readonly<Record<string, BuiltIn>> {
  return {
    accuracy: ({ completions, solution }) =>
      completions.map((text, i) => accuracy(text, solution[i] as string, options)),
    format: ({ completions }) => completions.map(format),
    math: ({ completions, solution }) => math(completions, solution),
  };
}
