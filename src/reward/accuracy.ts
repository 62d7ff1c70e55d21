import { extractAnswer } from "./extract-answer.ts";
import { goldAnswer } from "./gold.ts";

/**
 * 1 if the first character of the completion's first answer block equals the first character of the solution's, else 0: the seed's
 * `accuracy_reward` for multiple choice. Case counts; `(A)`, an empty block and a missing block earn 0; an answer inside `<think>`
 * counts; of two blocks the first decides. A solution without tags is taken whole.
 *
 * The seed first asks `math_verify`, which cannot parse a letter and so never fires for these questions; it has no counterpart here.
 */
export function accuracy(completion: string, solution: string): 0 | 1 {
  const answer = extractAnswer(completion);
  if (answer === null) return 0;
  const given = answer.codePointAt(0);
  const wanted = goldAnswer(solution).codePointAt(0);
  return given !== undefined && given === wanted ? 1 : 0;
}
