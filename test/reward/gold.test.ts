import { afterEach, expect, test, vi } from "vitest";
import { DataError } from "../../src/errors.ts";
import { log } from "../../src/log.ts";
import { checkGoldAnswers, goldAnswer, goldLetterOf } from "../../src/reward/gold.ts";
import type { Sample } from "../../src/types.ts";

afterEach(() => vi.restoreAllMocks());

const sampleOf = (solution: string, line = 1): Sample => ({
  id: `q${line}`,
  messages: [],
  solution,
  fields: {},
  source: { file: "chats.jsonl", line },
});

test("the gold answer is the solution's answer block, or the solution itself where it has no tags", () => {
  expect(goldAnswer("<think>B</think><answer> C. </answer>")).toBe("C.");
  expect(goldAnswer(" D\n")).toBe("D");
  expect(goldAnswer("<answer></answer>")).toBe("");
});

test.each(["", " \n", "<answer> </answer>"])("a record with the solution %j is refused by name", (solution) => {
  const samples = [sampleOf("<answer>A.</answer>"), sampleOf(solution, 2)];
  expect(() => checkGoldAnswers(samples, "L1")).toThrow(DataError);
  expect(() => checkGoldAnswers(samples, "L1")).toThrow(/chats\.jsonl:2 \(sample q2\): has no gold answer/);
});

test.each([
  ["A", "A"],
  ["A.", "A"],
  ["(A)", "A"],
  ["A)", "A"],
  ["(A).", "A"],
  ["A: put the pan down", "A"],
  ["C. stir", "C"],
  ["a", null],
  ["42", null],
  ["Above", null],
  ["A dog runs", null],
  ["A, B", null],
  ["A.5", null],
  ["", null],
  ["Ä", null],
])("the letter of %j is %j", (gold, letter) => {
  expect(goldLetterOf(gold)).toBe(letter);
});

test("answers that are no letter are counted in one warning that says how they are judged; letters are not worth a word", () => {
  const warn = vi.spyOn(log, "warn").mockImplementation(() => {});
  checkGoldAnswers([sampleOf("<answer>A.</answer>"), sampleOf("B"), sampleOf("C. stir")], "L1");
  expect(warn).not.toHaveBeenCalled();
  const open = [sampleOf("C"), sampleOf("<answer>42</answer>"), sampleOf("<answer>Above</answer>")];
  checkGoldAnswers(open, "open");
  expect(warn).toHaveBeenCalledTimes(1);
  expect(warn.mock.calls[0]).toMatchObject([{ set: "open", questions: 2 }, /word for word/]);
  checkGoldAnswers(open, "open", { firstLetter: true });
  expect(warn.mock.calls[1]).toMatchObject([{ set: "open", questions: 2 }, /first characters only/]);
  // "(" is the first character of every such answer.
  checkGoldAnswers([sampleOf("A"), sampleOf("(A)")], "brackets", { firstLetter: true });
  expect(warn.mock.calls[2]).toMatchObject([
    { set: "brackets", questions: 1, example: "(A)" },
    /first characters only/,
  ]);
});

test("math needs a gold answer too, and no letter", () => {
  const warn = vi.spyOn(log, "warn").mockImplementation(() => {});
  checkGoldAnswers([sampleOf("42"), sampleOf("\\frac12")], "open", { reward: "math" });
  expect(warn).not.toHaveBeenCalled();
  expect(() => checkGoldAnswers([sampleOf("")], "open", { reward: "math" })).toThrow(/so math cannot judge it/);
});
