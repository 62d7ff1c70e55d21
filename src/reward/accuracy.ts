import { extractAnswer, isSpace, strip } from "./extract-answer.ts";
import { goldAnswer, goldLetterOf } from "./gold.ts";

/** Which of the two rules `accuracy` judges by. */
export interface AccuracyOptions {
  /** The seed's rule (compat.firstLetterReward): first characters are compared, whatever follows them. Default false. */
  firstLetter?: boolean;
}

/**
 * 1 if the completion's first answer block gives the gold answer, else 0. An empty block and a missing block earn 0; an answer inside
 * `<think>` counts; of two blocks the first decides; case counts. A solution without tags is taken whole.
 *
 * Where the gold answer is a letter, the answer must begin with that letter standing by itself: `A`, `(A)`, `A. put`, `A: put`, not
 * `Above`. Any other gold answer must be met word for word.
 * With `firstLetter` the first characters of both are compared instead, the seed's `accuracy_reward`: `Above` then earns 1 and `(A)`
 * 0. The seed first asks `math_verify`, which cannot parse a letter and so never fires for these questions; it has no counterpart here.
 */
export function accuracy(completion: string, solution: string, { firstLetter = false }: AccuracyOptions = {}): 0 | 1 {
  const answer = extractAnswer(completion);
  if (answer === null || answer === "") return 0;
  const gold = goldAnswer(solution);
  if (firstLetter) return answer.codePointAt(0) === gold.codePointAt(0) ? 1 : 0;
  const letter = goldLetterOf(gold);
  if (letter === null) return answer === strip(gold) ? 1 : 0;
  return startsWithLetter(answer, letter) ? 1 : 0;
}

/** An optional "(", the letter, then one of `) . : ,`, white space or the end. */
function startsWithLetter(answer: string, letter: string): boolean {
  const at = answer[0] === "(" ? 1 : 0;
  if (answer[at] !== letter) return false;
  const next = answer[at + 1];
  return next === undefined || ").:,".includes(next) || isSpace(next);
}
