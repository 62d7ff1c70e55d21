/** What a reasoning concludes, by the wording of the rendered data set and in general. */

import { expect, test } from "vitest";
import { letteredOptions, letterOf, seedPrompt } from "../../src/data/question.ts";
import { planVideo, sftRecord } from "../../src/data/rendered/records.ts";
import { type Consistency, consistencyOf, optionsIn, questionOf } from "../../src/reward/consistency.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { fakeGroup } from "../trainer/fakes.ts";

const lettered = (texts: string[]) => texts.map((text, i) => ({ letter: letterOf(i), text }));
const rendered = lettered(["red star next", "green ring next", "blue moon next", "pink cross next"]);
const kitchen = lettered(["open the door", "close the red door", "put the pan down", "take cereal bag"]);

test.each<[Consistency, string]>([
  ["consistent", "<think> next step 3 green B </think><answer> B </answer>"],
  ["consistent", "<think> next step 3 green </think><answer>B.</answer>"],
  ["consistent", "<think> next step 2 red A next step 3 green B </think><answer>(B)</answer>"], // the last step decides
  ["inconsistent", "<think> next step 3 green B </think><answer> C </answer>"],
  ["inconsistent", "<think> next step 3 blue B </think><answer> B </answer>"], // its colour is C's
  ["inconsistent", "<think> next step 3 blue B </think><answer> C </answer>"], // its letter is not
  ["inconsistent", "<think> next step 3 orange B </think><answer> B </answer>"], // no option is orange
  ["undecided", "<think> next step </think><answer> B </answer>"],
  ["undecided", "<think> next step 3 green B </think>"],
  ["undecided", "<think> next step 3 green B </think><answer></answer>"],
  ["undecided", "<think> next step 3 green B </think><answer>E</answer>"],
  ["undecided", "<think> next step 3 green B </think><answer> B"], // cut off
  ["undecided", "<answer>B</answer>"],
  ["undecided", "<think>  </think><answer>B</answer>"],
  ["undecided", ""],
  ["consistent", "<think> it must be the green ring next </think><answer>B</answer>"], // in other words, by the general rule
])("rendered, %s: %s", (verdict, completion) => {
  expect(consistencyOf(completion, rendered)).toBe(verdict);
});

test("every chain of thought of the rendered set is consistent, those that guess too, and with another answer it is not", () => {
  for (let index = 0; index < 12; index++) {
    const { prompt, response } = sftRecord(planVideo(3, "train", index), index % 4, { guesses: 0.5 });
    const options = optionsIn(questionOf(prompt));
    expect(options).toHaveLength(4);
    expect(consistencyOf(response, options)).toBe("consistent");
    const letter = /<answer> (\w) /.exec(response)?.[1] as string;
    const other = letter === "A" ? "B" : "A";
    expect(consistencyOf(response.replace(/<answer>.*/, `<answer>${other}</answer>`), options)).toBe("inconsistent");
  }
});

test.each<[Consistency, string, string]>([
  ["consistent", "The door is shut, so I should open the door.", "A"],
  ["consistent", "It could be A, but the pan is hot: Put the pan  down!", "C"],
  ["consistent", "The answer is (C).", "C. put the pan down"],
  ["consistent", "One should take cereal-bag first", "take cereal bag."], // answered by its text
  ["consistent", "not open the door but close the red door", "B"], // two that overlap: the longer one
  ["consistent", "A person stands there. Option A fits.", "A"],
  ["consistent", "A is right", "A"],
  ["inconsistent", "The pan is hot, so put the pan down. A person waits.", "A"], // a word, not a letter
  ["inconsistent", "Put the pan down.", "D"],
  ["inconsistent", "Surely B", "A"],
  ["undecided", "Bob's DVD says: open a door, A's door", "A"],
  ["undecided", "", "A"],
])("in general, %s: %s -> %s", (verdict, reasoning, answer) => {
  expect(consistencyOf(`<think>${reasoning}</think><answer>${answer}</answer>`, kitchen)).toBe(verdict);
});

test("without options nothing can be told", () => {
  expect(consistencyOf("<think>the answer is B</think><answer>B</answer>", [])).toBe("undecided");
});

test("options are read from the question as it was asked", () => {
  const texts = ["open the door", "a. b", "x", "y", "z"];
  expect(optionsIn(seedPrompt("A. What next?\nB", letteredOptions(texts)))).toEqual(lettered(texts));
  expect(optionsIn("What is 3 + 4?")).toEqual([]);
  expect(optionsIn("A. first\nC. third")).toEqual([{ letter: "A", text: "first" }]);
});

test("as a reward: 1, 0, and null where it cannot be told", async () => {
  const group = fakeGroup([0, 0, 0]);
  const text = seedPrompt("What next?", letteredOptions(kitchen.map((option) => option.text)));
  group.prompt.sample.messages = [{ role: "user", content: [{ type: "text", text }] }];
  const answers = ["<think>B</think><answer>B</answer>", "<think>B</think><answer>C</answer>", "C"];
  for (const [i, completion] of group.completions.entries()) completion.text = answers[i] as string;
  const rewards = createRewards([{ name: "consistency", weight: 0.5, timeoutS: 60 }]);
  await rewards.score([group]);
  expect(group.rewards).toEqual([0.5, 0, Number.NaN]);
  expect(group.rewardBreakdown).toEqual({ consistency: [1, 0, Number.NaN] });
  await rewards.close();
});
