/** How often answers follow from their reasoning: counts, shares, and their table. */

import { expect, test } from "vitest";
import { consistencyShare, consistencyTable, tallyConsistency } from "../../src/eval/consistency.ts";
import { evalMetrics, sumResults } from "../../src/eval/evaluate.ts";
import type { LevelResult } from "../../src/eval/report.ts";

const problem = "What next?\nA. open\nB. close\n Output the thinking process";
const record = (response: string, reward: number) => ({
  ...{ sample_id: response, prompt: [], problem, solution: "<answer>A.</answer>", response, reward },
});
const records = [
  record("<think>A</think><answer>A</answer>", 1),
  record("<think>close</think><answer>A</answer>", 1),
  record("<think>hm</think><answer>A</answer>", 1),
  record("<think>close</think><answer>B</answer>", 0),
  record("<think>close", 0),
];

test("of all answers and of the right ones; what cannot be told is no agreement", () => {
  const tally = tallyConsistency(records);
  expect(tally).toEqual({
    all: { consistent: 2, inconsistent: 1, undecided: 2 },
    right: { consistent: 1, inconsistent: 1, undecided: 1 },
  });
  expect(consistencyShare(tally.all)).toBe(0.4);
  expect(consistencyShare({ consistent: 0, inconsistent: 0, undecided: 0 })).toBeNull();
  expect(consistencyTable({ L1: tally, none: tallyConsistency([]) }).split("\n")).toEqual([
    "level  consistent  not  undecided  of right ones  not  undecided",
    "-----  ----------  ---  ---------  -------------  ---  ---------",
    "L1         40.0 %    1          2         33.3 %    1          1",
    "none            -    0          0              -    0          0",
  ]);
});

test("shares of several ranks add up, and are metrics where they were asked for", () => {
  const one = (some: typeof records): LevelResult => ({
    ...{ correct: 0, n: some.length, parts: {}, skipped: 0 },
    consistency: tallyConsistency(some),
  });
  const sum = sumResults([{ L1: one(records.slice(0, 2)) }, { L1: one(records.slice(2)) }]);
  expect(sum.L1?.consistency).toEqual(tallyConsistency(records));
  expect(evalMetrics(sum)).toMatchObject({ "eval/L1/consistency": 0.4, "eval/L1/consistency_of_right": 1 / 3 });
  expect(evalMetrics({ L1: { correct: 1, n: 2, parts: {}, skipped: 0 } })).toEqual({
    "eval/L1/accuracy": 0.5,
    "eval/L1/n": 2,
  });
});
