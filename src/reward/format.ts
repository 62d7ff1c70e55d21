import { isSpace } from "./extract-answer.ts";

const THINK_OPEN = "<think>";
const THINK_CLOSE = "</think>";
const ANSWER_OPEN = "<answer>";
const ANSWER_CLOSE = "</answer>";

/**
 * 1 if the completion starts with a thought that is followed, but for white space, by an answer, else 0: the seed's
 * `re.match(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)`. Text after the answer is allowed, text before the
 * thought is not. Linear in the length of the text.
 */
export function format(completion: string): 0 | 1 {
  if (!completion.startsWith(THINK_OPEN)) return 0;
  let close = completion.indexOf(THINK_CLOSE, THINK_OPEN.length);
  while (close >= 0) {
    let next = close + THINK_CLOSE.length;
    while (isSpace(completion[next])) next++;
    if (completion.startsWith(ANSWER_OPEN, next)) {
      // A later answer block would need a closing tag behind this one's place as well, so this one decides.
      return completion.indexOf(ANSWER_CLOSE, next + ANSWER_OPEN.length) >= 0 ? 1 : 0;
    }
    close = completion.indexOf(THINK_CLOSE, next);
  }
  return 0;
}
