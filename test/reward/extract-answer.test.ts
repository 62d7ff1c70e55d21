import fc from "fast-check";
import { expect, test } from "vitest";
import { extractAnswer, strip } from "../../src/reward/extract-answer.ts";

test.each([
  ["<answer>A</answer>", "A"],
  ["<answer> A. put the pan on the stove </answer>", "A. put the pan on the stove"],
  ["<think>first\nsecond</think>\n<answer>\nB.\n</answer> done", "B."],
  ["<answer></answer>", ""],
  ["<answer>A</answer><answer>B</answer>", "A"],
  ["<think>maybe <answer>C</answer></think><answer>D</answer>", "C"],
  ["<answer>A<answer>B</answer>", "A<answer>B"],
  ["</answer><answer>B</answer>", "B"],
  ["A", null],
  ["", null],
  ["<answer>A", null],
  ["</answer>A<answer>", null],
  ["<Answer>A</Answer>", null],
  ["<answer >A</answer>", null],
  ["<answer>\u00a0\u2003\x1cÄ\x85</answer>", "Ä"],
  ["<answer>\ufeffA</answer>", "\ufeffA"], // Python's strip keeps the byte order mark
])("%j holds %j", (text, expected) => {
  expect(extractAnswer(text)).toBe(expected);
});

test("whatever is written inside the first block comes back stripped", () => {
  const inside = fc.string({ unit: "binary", maxLength: 60 }).filter((text) => !text.includes("</answer>"));
  const before = fc.string({ unit: "binary", maxLength: 60 }).filter((text) => !text.includes("<answer>"));
  fc.assert(
    fc.property(before, inside, fc.string(), (head, body, tail) => {
      fc.pre(!`${head}<answer>`.slice(0, -1).includes("<answer>"));
      expect(extractAnswer(`${head}<answer>${body}</answer>${tail}`)).toBe(strip(body));
    }),
  );
});

test("the same block is found by the seed's regular expression", () => {
  const piece = fc.constantFrom("<answer>", "</answer>", "<answer", "answer>", "A", " ", "\n", "<", "🙂");
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
      const text = pieces.join("");
      const match = /<answer>([\s\S]*?)<\/answer>/.exec(text);
      expect(extractAnswer(text)).toBe(match ? strip(match[1] as string) : null);
    }),
    { numRuns: 500 },
  );
});

test("100 kB of opening tags are read in linear time", () => {
  const start = performance.now();
  expect(extractAnswer("<answer>".repeat(12_500))).toBeNull();
  expect(extractAnswer(`${"<answer>".repeat(12_500)}</answer>`)).toHaveLength(12_499 * 8);
  expect(performance.now() - start).toBeLessThan(200);
});
