import { isOwn, type RewardFunctionConfig } from "../config/rewards.ts";
import { DataError } from "../errors.ts";
import { log } from "../log.ts";
import type { Sample } from "../types.ts";
import { extractAnswer, strip } from "./extract-answer.ts";

/** What accuracy compares a completion's answer with: the solution's answer block, or all of a solution without tags. */
export function goldAnswer(solution: string): string {
  return extractAnswer(solution) ?? strip(solution);
}

/**
 * The letter of a multiple-choice gold answer: `A`, `A.`, `(A)`, `(A).`, `A. put the pan down`. Null for anything else, such as `42`, `Above`
 * or a sentence that begins with a word of one letter.
 */
export function goldLetterOf(gold: string): string | null {
  const match = /^\(?([A-Z])(?:$|[).:]{1,2}(?:$|\s))/.exec(gold);
  return match?.[1] ?? null;
}

/**
 * Looks at the gold answers of a set of questions before any is asked. Without one, the reward (accuracy or math) would be 0 and nobody
 * would know why; how accuracy judges one that is no letter is said once.
 *
 * @throws DataError naming the first record that has none
 */
export function checkGoldAnswers(
  samples: readonly Sample[],
  set: string,
  { firstLetter = false, reward = "accuracy" }: { firstLetter?: boolean; reward?: string } = {},
): void {
  const without = samples.find(({ solution }) => goldAnswer(solution) === "");
  if (without !== undefined) {
    throw new DataError(
      { ...without.source, sampleId: without.id },
      `has no gold answer, so ${reward} cannot judge it; give the record an answer, or a solution of the form <answer>B.</answer>`,
    );
  }
  if (reward !== "accuracy") return;
  const open = samples.filter(({ solution }) => {
    const gold = goldAnswer(solution);
    const letter = goldLetterOf(gold);
    return letter === null || (firstLetter && letter !== gold[0]); // the first character of (A) and (B) is the same
  });
  if (open.length > 0) {
    const fields = { set, questions: open.length, example: open[0]?.solution };
    const rule = firstLetter ? "compares their first characters only" : "wants them word for word";
    log.warn(fields, `gold answers that are no plain letter: accuracy ${rule}`);
  }
}

/** The same for every reward of a config that compares with the gold answer. */
export function checkGoldOfRewards(
  rewards: readonly RewardFunctionConfig[],
  samples: readonly Sample[],
  set: string,
  { firstLetter }: { firstLetter: boolean },
): void {
  for (const reward of rewards) {
    const { name } = reward;
    if (!isOwn(reward) && (name === "accuracy" || name === "math")) {
      checkGoldAnswers(samples, set, { firstLetter, reward: name });
    }
  }
}
