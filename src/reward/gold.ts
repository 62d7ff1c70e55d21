import { DataError } from "../errors.ts";
import { log } from "../log.ts";
import type { Sample } from "../types.ts";
import { extractAnswer, strip } from "./extract-answer.ts";

/** What accuracy compares a completion's answer with: the solution's answer block, or all of a solution without tags. */
export function goldAnswer(solution: string): string {
  return extractAnswer(solution) ?? strip(solution);
}

/**
 * Looks at the gold answers of a set of questions before any is asked. Without one, accuracy would be 0 and nobody would know why; one
 * that is no letter is judged by its first character alone, which is said once.
 *
 * @throws DataError naming the first record that has none
 */
export function checkGoldAnswers(samples: readonly Sample[], set: string): void {
  const without = samples.find(({ solution }) => goldAnswer(solution) === "");
  if (without !== undefined) {
    throw new DataError(
      { ...without.source, sampleId: without.id },
      "has no gold answer, so accuracy cannot judge it; give the record an answer, or a solution of the form <answer>B.</answer>",
    );
  }
  const open = samples.filter(({ solution }) => !/^[A-Z]\.?$/.test(goldAnswer(solution)));
  if (open.length > 0) {
    const fields = { set, questions: open.length, example: open[0]?.solution };
    log.warn(fields, "gold answers that are no letter: accuracy compares their first characters only");
  }
}
