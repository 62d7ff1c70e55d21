import fc from "fast-check";
import { expect, test } from "vitest";
import { accuracy } from "../../src/reward/accuracy.ts";

test.each([
  ["<answer>A</answer>", 1],
  ["<answer> A. put the pan down</answer>", 1],
  ["<answer>Above</answer>", 1],
  ["<think>x</think><answer>A</answer><answer>B</answer>", 1],
  ["<think>x</think><answer>B</answer><answer>A</answer>", 0],
  ["<think><answer>A</answer></think><answer>B</answer>", 1],
  ["<answer>a</answer>", 0],
  ["<answer>(A)</answer>", 0],
  ["<answer></answer>", 0],
  ["<answer>   </answer>", 0],
  ["A", 0],
  ["", 0],
  ["<answer>A", 0],
  ["<answer>Ａ</answer>", 0], // full-width letter
] as const)("%j earns %d where A is right", (completion, reward) => {
  expect(accuracy(completion, "<answer>A.</answer>")).toBe(reward);
});

test("a solution without tags is taken whole, one without content earns nothing", () => {
  expect(accuracy("<answer>C</answer>", "  C. stir")).toBe(1);
  expect(accuracy("<answer>C</answer>", "")).toBe(0);
  expect(accuracy("<answer></answer>", "")).toBe(0);
  expect(accuracy("<answer>C</answer>", "<answer> </answer>")).toBe(0);
});

test("characters outside the basic plane are compared whole", () => {
  expect(accuracy("<answer>😀</answer>", "<answer>😁</answer>")).toBe(0); // same first UTF-16 unit
  expect(accuracy("<answer>😀 x</answer>", "<answer>😀</answer>")).toBe(1);
});

test("for any letters the reward is their equality", () => {
  const letter = fc.constantFrom(..."ABCDabcd");
  fc.assert(
    fc.property(letter, letter, fc.string(), (given, wanted, rest) => {
      const completion = `<think>?</think><answer>${given}${rest.replaceAll("<", "")}</answer>`;
      expect(accuracy(completion, `<answer>${wanted}.</answer>`)).toBe(given === wanted ? 1 : 0);
    }),
  );
});

test("any text earns 0 or 1", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (completion, solution) => {
      expect([0, 1]).toContain(accuracy(completion, solution));
    }),
  );
});
