import { expect, test } from "vitest";
import { type EvalResults, evalTable, summarize } from "../../src/eval/report.ts";

const results: EvalResults = {
  L1: { correct: 8, n: 10, parts: {}, skipped: 0 },
  L3: {
    correct: 3,
    n: 12,
    parts: { domain: { Work: { correct: 1, n: 5 }, Hobbies: { correct: 2, n: 7 } } },
    skipped: 2,
  },
};

test("the table has a row per level and per part, aligned", () => {
  expect(evalTable(results).split("\n")).toEqual([
    "level             correct  accuracy  95 % interval",
    "----------------  -------  --------  -------------",
    "L1                   8/10    80.0 %  49.0 - 94.3 %",
    "L3                   3/12    25.0 %   8.9 - 53.2 %",
    "  domain Hobbies      2/7    28.6 %   8.2 - 64.1 %",
    "  domain Work         1/5    20.0 %   3.6 - 62.4 %",
    "  skipped               2",
  ]);
});

test("the summary holds accuracy, counts and interval", () => {
  const { L1 } = summarize(results);
  expect(L1).toMatchObject({ accuracy: 0.8, n: 10, correct: 8 });
  expect(L1?.low).toBeCloseTo(0.49016, 4);
  expect(L1?.high).toBeCloseTo(0.94332, 4);
});
