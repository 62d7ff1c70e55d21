import fc from "fast-check";
import { expect, test } from "vitest";
import { format } from "../../src/reward/format.ts";

test.each([
  ["<think>a</think><answer>A</answer>", 1],
  ["<think>a\nb</think>\n \n<answer>A\n</answer> and more", 1],
  ["<think></think><answer></answer>", 1],
  ["<think>a</think> b </think><answer>A</answer>", 1],
  ["<think>a</think>b<answer>A</answer></think>\x1c<answer>B</answer>", 1],
  [" <think>a</think><answer>A</answer>", 0],
  ["x<think>a</think><answer>A</answer>", 0],
  ["<think>a</think>b<answer>A</answer>", 0],
  ["<think>a</think><answer>A", 0],
  ["<think>a<answer>A</answer>", 0],
  ["<answer>A</answer>", 0],
  ["<think>", 0],
  ["", 0],
] as const)("%j earns %d", (completion, reward) => {
  expect(format(completion)).toBe(reward);
});

test("the seed's regular expression matches the same texts", () => {
  const piece = fc.constantFrom("<think>", "</think>", "<answer>", "</answer>", " ", "\n", "A", "<");
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
      const text = `<think>${pieces.join("")}`;
      const matches = /^<think>[\s\S]*?<\/think>\s*<answer>[\s\S]*?<\/answer>/.test(text);
      expect(format(text)).toBe(matches ? 1 : 0);
    }),
    { numRuns: 2000 },
  );
});

test("hostile text is read in linear time", () => {
  const start = performance.now();
  expect(format(`<think>${"</think><answer>".repeat(6000)}`)).toBe(0);
  expect(format(`<think>${"</think>".repeat(12_000)}`)).toBe(0);
  expect(format(`<think>${`</think>${" ".repeat(40)}`.repeat(2000)}<answer>A</answer>`)).toBe(1);
  expect(performance.now() - start).toBeLessThan(200);
});
