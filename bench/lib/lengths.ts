import { normal } from "../../src/random.ts";

/** Lengths of completions: log-normal with this mean and spread of the logarithm, in tokens, from 1 to `most`; a function of the two indices. */
export function logNormalLengths(mean: number, sigma: number, most: number): (prompt: number, item: number) => number {
  return (prompt, item) => {
    const length = Math.exp(Math.log(mean) - sigma ** 2 / 2 + sigma * normal("bench lengths", prompt, item));
    return Math.min(most, Math.max(1, Math.round(length)));
  };
}
