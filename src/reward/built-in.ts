/** Every reward that needs no code of the user's: text in, numbers out, in this thread. */

import { type AccuracyOptions, accuracy } from "./accuracy.ts";
import { consistencyOf, optionsIn, questionOf } from "./consistency.ts";
import { format } from "./format.ts";
import { math } from "./math.ts";
import type { RewardArgs } from "./reward-function.ts";

export type BuiltIn = (args: RewardArgs) => (number | null)[] | Promise<(number | null)[]>;

export function builtInRewards(options: AccuracyOptions): Readonly<Record<string, BuiltIn>> {
  return {
    accuracy: ({ completions, solution }) =>
      completions.map((text, i) => accuracy(text, solution[i] as string, options)),
    format: ({ completions }) => completions.map(format),
    math: ({ completions, solution }) => math(completions, solution),
    consistency: ({ completions, prompts }) =>
      completions.map((text, i) => {
        const verdict = consistencyOf(text, optionsIn(questionOf(prompts[i] ?? [])));
        return verdict === "undecided" ? null : Number(verdict === "consistent");
      }),
  };
}
