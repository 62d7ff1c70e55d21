/** Which of a completion's tokens are its answer. */

import { strip } from "./extract-answer.ts";

const TAG = "<answer>";
const CLOSE = "</answer>";

/**
 * The tokens [begin, end) of the last answer block, for a completion whose token t reads `pieces[t]` ("" for special tokens); null where there is
 * no block or nothing in it. They are what GRPO-CARE's code takes (its trainer/grpo_trainer_ref_ema.py, get_thinking_answer_masks): from the token
 * behind the one that ends the word `answer`, hence the tag's `>` or the `>B` that a tokenizer makes of it, up to the closing tag; neither that
 * nor the end token. A block that is not closed ends with the text.
 *
 * Where those tokens leave the text of the answer out, because a tokenizer has joined it with its tags, the tokens that it is a part of are taken.
 *
 * answerTokens(["<think>", " B", "</think>", "<", "answer", ">", " B", ".</", "answer", ">", ""]) // [5, 7]
 */
export function answerTokens(pieces: readonly string[]): [begin: number, end: number] | null {
  const text = pieces.join("");
  const open = text.lastIndexOf(TAG);
  if (open < 0) return null;
  const content = open + TAG.length;
  const close = text.indexOf(CLOSE, content);
  const last = close < 0 ? text.length : close;
  if (strip(text.slice(content, last)) === "") return null;

  const spans: [start: number, end: number][] = [];
  let at = 0;
  for (const { length } of pieces) {
    spans.push([at, at + length]);
    at += length;
  }
  const between = range(spans, ([start, end]) => start >= content - 1 && end <= last && end > start);
  const holdsText = between !== null && (spans[between[1] - 1] as [number, number])[1] > content;
  return holdsText ? between : range(spans, ([start, end]) => end > content && start < last && end > start);
}

/** From the first to behind the last one that is `wanted`; they are neighbours. */
function range<T>(items: readonly T[], wanted: (item: T) => boolean): [number, number] | null {
  const first = items.findIndex(wanted);
  return first < 0 ? null : [first, items.findLastIndex(wanted) + 1];
}
