import { expect, test } from "vitest";
import { spread } from "../../bench/lib/report.ts";
import { seedPrompts } from "../../bench/lib/shapes.ts";

test("the median is the middle one, of an even number the mean of the two", () => {
  expect(spread([5, 1, 3])).toEqual({ median: 3, min: 1, max: 5 });
  expect(spread([9, 1, 3, 4])).toEqual({ median: 3.5, min: 1, max: 9 });
  expect(spread([7])).toEqual({ median: 7, min: 7, max: 7 });
  expect(() => spread([])).toThrow(RangeError);
});

test("prompts have as many tokens as they were asked to have, and no fewer than their pictures", () => {
  for (const tokens of [733, 931, 2000]) {
    const lengths = seedPrompts(3, tokens).map(({ inputIds }) => inputIds.length);
    expect(lengths).toEqual([tokens, tokens, tokens]);
  }
  expect(() => seedPrompts(1, 732)).toThrow("--prompt 732: 733 or more");
});
