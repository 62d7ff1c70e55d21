/** Which tokens are a completion's answer, however a tokenizer cuts the tags. */

import { expect, test } from "vitest";
import { answerTokens } from "../../src/reward/answer-tokens.ts";

test.each<[string, string[], [number, number] | null]>([
  // Qwen2 joins > with the letter behind it; the closing tag and the end token are left out, as is a full stop that is one token with the tag.
  ["letter joined with the tag", ["x", "<", "answer", ">B", "</", "answer", ">", ""], [3, 4]],
  ["tag's > by itself counts", ["x", "><", "answer", ">", " B", " </", "answer", ">", ""], [3, 5]],
  ["full stop joined with the closing tag", ["<", "answer", ">B", ".</", "answer", ">", ""], [2, 3]],
  ["several tokens", ["<", "answer", ">", "B", ".", " put", " it", "</", "answer", ">", ""], [2, 7]],
  ["the tag one token", ["<answer>", "B", "</answer>", ""], [1, 2]],
  ["the whole block one token", ["x", "<answer>B</answer>", ""], [1, 2]],
  ["the text joined with the closing tag", ["<", "answer", ">", "7</", "answer", ">"], [3, 4]],
  ["the text joined with the opening tag", ["<", "answer>B", "</", "answer", ">"], [1, 2]],
  ["the last of two blocks", ["<answer>", "A", "</answer>", "<answer>", "B", "</answer>"], [4, 5]],
  ["text behind the block does not count", ["<answer>", "A", "</answer>", " so", " B", ""], [1, 2]],
  ["cut off before the block is closed", ["<", "answer", ">", "B", ".", " put"], [2, 6]],
  ["a character in two tokens", ["\ufffd", "\ufffd", "<answer>", "\ufffd", "\ufffd", "</answer>"], [3, 5]],
  ["no block", ["A", ""], null],
  ["no text", [], null],
  ["a closing tag alone", ["B", "</", "answer", ">"], null],
  ["an empty block", ["<", "answer", "></", "answer", ">"], null],
  ["white space alone", ["<answer>", " \n", "</answer>"], null],
  ["cut off within the tag", ["<", "answer"], null],
  ["cut off behind the tag", ["<", "answer", ">"], null],
])("%s", (_, pieces, expected) => {
  expect(answerTokens(pieces)).toEqual(expected);
});
