/** Pairs of answers with a person's verdict and math_verify's (scripts/make-math-pairs.py). */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { mathEqual } from "../../../src/reward/math/equal.ts";

interface Pair {
  gold: string;
  answer: string;
  same: boolean;
  mathVerify: boolean;
}

const { pairs } = JSON.parse(readFileSync(new URL("pairs.json", import.meta.url), "utf8")) as { pairs: Pair[] };

test.each(pairs)("$gold and $answer: $same", ({ gold, answer, same }) => {
  expect(mathEqual(answer, gold)).toBe(same);
  expect(mathEqual(gold, answer)).toBe(same);
});

test("math_verify 0.9.0 judges 102 of the 108 alike; where it differs it misses that they mean the same", () => {
  expect(pairs).toHaveLength(108);
  const differing = pairs.filter(({ gold, answer, mathVerify }) => mathEqual(answer, gold) !== mathVerify);
  expect(differing.map(({ gold, answer }) => `${gold} | ${answer}`)).toEqual([
    "1\\,000 | 1000",
    "1e3 | 1000",
    "0.\\overline{3} | \\frac{1}{3}",
    "0.1\\overline{6} | \\frac{1}{6}",
    "6.02\\times 10^{23} | 6.02e23",
    "\\frac{1}{i} | -i",
  ]);
  for (const { mathVerify } of differing) expect(mathVerify).toBe(false);
});
