import { extractAnswer, strip } from "./extract-answer.ts";
import { goldAnswer } from "./gold.ts";

/** A longer answer is cut before it is looked at; nothing that long equals a gold answer. */
const MAX_ANSWER = 4000;

/**
 * 1 for each completion whose answer means the same as the gold answer, else 0: numbers (fractions, decimals, percentages, 1,234), formulas
 * ((x+1)^2 and x^2+2x+1), sets, tuples, intervals, equations, in LaTeX or plain text; words are compared as words. For data sets other
 * than multiple choice.
 *
 * The answer is the completion's first answer block, or its last \boxed{} where there is none; the gold answer likewise, or what follows
 * `####` (GSM8K). Prose around it is forgiven as far as `the answer is 5` and the last $...$ go. The parser (mathjs, 0.4 s to load) is
 * loaded with the first call.
 */
export async function math(completions: readonly string[], solutions: readonly unknown[]): Promise<(0 | 1)[]> {
  const { mathEqual } = await import("./math/equal.ts");
  return completions.map((completion, i) => {
    const gold = goldOf(String(solutions[i] ?? ""));
    const answer = givenAnswer(completion);
    if (answer === null || gold === "") return 0;
    return candidates(answer).some((candidate) => mathEqual(candidate, gold)) ? 1 : 0;
  });
}

function goldOf(solution: string): string {
  const gold = goldAnswer(solution);
  const after = gold.lastIndexOf("####");
  return strip(lastBoxed(gold) ?? (after < 0 ? gold : gold.slice(after + 4)));
}

function givenAnswer(completion: string): string | null {
  const block = extractAnswer(completion);
  const answer = block === null ? lastBoxed(completion) : (lastBoxed(block) ?? block);
  return answer === null ? null : strip(answer.slice(0, MAX_ANSWER));
}

/** The answer as it stands and, where it is a sentence, the one thing that it comes to: several would be several guesses. */
function candidates(answer: string): string[] {
  const segments = [...answer.matchAll(/\$([^$]{1,600})\$|\\\(([^$]{1,600}?)\\\)/g)];
  const bare = segments.reduce((text, [segment]) => text.replace(segment, () => " "), answer);
  if (!/(?<!\\\p{L}{0,20})\p{L}{2}/u.test(bare)) return [answer];
  const last = segments.at(-1);
  const tail = answer.slice(-400);
  const said = /\b(?:is|equals|answer:)\s+([^\s][^\n]{0,200})$/i.exec(tail);
  const saidAt = said === null || !/\d|\\/.test(said[1] as string) ? -1 : answer.length - (said[1] as string).length;
  // Whichever comes last: $x$ is 5, or the area is $5$ cm.
  if (saidAt >= 0 && (last === undefined || last.index < saidAt)) return [answer, said?.[1] as string];
  return last === undefined ? [answer] : [answer, (last[1] ?? last[2]) as string];
}

/** The content of the last \boxed{...}, braces matched; null where there is none or it is not closed. */
function lastBoxed(text: string): string | null {
  const start = text.lastIndexOf("\\boxed{");
  if (start < 0) return null;
  const first = start + "\\boxed{".length;
  let depth = 1;
  for (let i = first; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return text.slice(first, i);
  }
  return null;
}
