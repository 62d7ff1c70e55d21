import fc from "fast-check";
import { expect, test } from "vitest";
import { accuracy } from "../../src/reward/accuracy.ts";
import { format } from "../../src/reward/format.ts";

// completion, reward by the default rule, by the seed's first letter
test.each([
  ["<answer>A</answer>", 1, 1],
  ["<answer> A. put the pan down</answer>", 1, 1],
  ["<answer>Above</answer>", 0, 1],
  ["<answer>(A)</answer>", 1, 0],
  ["<answer>(A) put the pan down</answer>", 1, 0],
  ["<answer>(A</answer>", 1, 0],
  ["<answer>A)</answer>", 1, 1],
  ["<answer>A: put</answer>", 1, 1],
  ["<answer>A, I think</answer>", 1, 1],
  ["<answer>A\n</answer>", 1, 1],
  ["<answer>A\u00a0put</answer>", 1, 1], // Python's white space
  ["<answer>A\ufeffput</answer>", 0, 1], // a byte order mark is none
  ["<answer>A;</answer>", 0, 1],
  ["<answer>A1</answer>", 0, 1],
  ["<answer>AB</answer>", 0, 1],
  ["<answer>A-B</answer>", 0, 1],
  ["<answer>((A))</answer>", 0, 0],
  ["<answer>( A )</answer>", 0, 0],
  ["<answer>**A**</answer>", 0, 0],
  ["<answer>[A]</answer>", 0, 0],
  ["<answer>The answer is A</answer>", 0, 0],
  ["<answer>a</answer>", 0, 0],
  ["<answer>B. A</answer>", 0, 0],
  ["<think>x</think><answer>A</answer><answer>B</answer>", 1, 1],
  ["<think>x</think><answer>B</answer><answer>A</answer>", 0, 0],
  ["<think><answer>A</answer></think><answer>B</answer>", 1, 1],
  ["<answer></answer>", 0, 0],
  ["<answer>   </answer>", 0, 0],
  ["<answer></answer><answer>A</answer>", 0, 0],
  ["A", 0, 0],
  ["", 0, 0],
  ["<answer>A", 0, 0],
  ["</answer>A<answer>", 0, 0],
  ["<answer><answer>A</answer></answer>", 0, 0], // nested: the content begins with the inner tag
  ["<answer>A<answer>B</answer></answer>", 0, 1],
  ["<Answer>A</Answer>", 0, 0],
  ["<answer>Ａ</answer>", 0, 0], // full-width letter
  ["<answer>А</answer>", 0, 0], // Cyrillic
  ["<answer>Á</answer>", 0, 0],
  ["<answer>A\u0301</answer>", 0, 1], // A with a combining accent is two characters to Python too
  ["<answer>\u202eA</answer>", 0, 0], // right-to-left override
  ["<answer>A\u202c</answer>", 0, 1],
  ["<answer>\ud835\udc00</answer>", 0, 0], // mathematical bold A
  ["<answer>\ud800A</answer>", 0, 0], // lone surrogate
  ["<answer>A\udc00</answer>", 0, 1],
  ["<answer>\0A</answer>", 0, 0],
] as const)("%j earns %d where A is right, %d by its first letter", (completion, reward, byFirstLetter) => {
  expect(accuracy(completion, "<answer>A.</answer>")).toBe(reward);
  expect(accuracy(completion, "<answer>A.</answer>", { firstLetter: true })).toBe(byFirstLetter);
});

test("a solution without tags is taken whole, one without content earns nothing", () => {
  for (const firstLetter of [false, true]) {
    expect(accuracy("<answer>C</answer>", "  C. stir", { firstLetter })).toBe(1);
    expect(accuracy("<answer>C</answer>", "", { firstLetter })).toBe(0);
    expect(accuracy("<answer></answer>", "", { firstLetter })).toBe(0);
    expect(accuracy("<answer>C</answer>", "<answer> </answer>", { firstLetter })).toBe(0);
  }
});

// gold, answer, reward by the default rule, by the first letter
test.each([
  ["(C)", "C", 1, 0],
  ["C)", "(C)", 1, 0],
  ["C: stir", "C.", 1, 1],
  ["42", "42", 1, 1],
  ["42", "4", 0, 1],
  ["42", "42.", 0, 1],
  ["Above", "Above", 1, 1],
  ["Above", "A", 0, 1],
  ["A dog runs", "A dog runs", 1, 1], // an article, not an option
  ["A dog runs", "A", 0, 1],
  ["A dog runs", "A cat sits", 0, 1],
  ["yes", "Yes", 0, 0],
] as const)("gold %j, answer %j: %d, by the first letter %d", (gold, answer, reward, byFirstLetter) => {
  const completion = `<answer> ${answer} </answer>`;
  expect(accuracy(completion, `<answer>${gold}</answer>`)).toBe(reward);
  expect(accuracy(completion, `<answer>${gold}</answer>`, { firstLetter: true })).toBe(byFirstLetter);
});

test("characters outside the basic plane are compared whole", () => {
  const firstLetter = { firstLetter: true };
  expect(accuracy("<answer>😀</answer>", "<answer>😁</answer>", firstLetter)).toBe(0); // same first UTF-16 unit
  expect(accuracy("<answer>😀 x</answer>", "<answer>😀</answer>", firstLetter)).toBe(1);
  expect(accuracy("<answer>😀</answer>", "<answer>😁</answer>")).toBe(0);
  expect(accuracy("<answer>😀</answer>", "<answer>😀</answer>")).toBe(1);
});

test("for any letters the reward is their equality", () => {
  const letter = fc.constantFrom(..."ABCD");
  const rest = fc.constantFrom("", ".", ". stir the pot", ") yes", ":", ", too", " stands", "\n");
  fc.assert(
    fc.property(letter, letter, rest, (given, wanted, more) => {
      const completion = `<think>?</think><answer>${given}${more}</answer>`;
      for (const firstLetter of [false, true])
        expect(accuracy(completion, `<answer>${wanted}.</answer>`, { firstLetter })).toBe(given === wanted ? 1 : 0);
    }),
  );
});

test("any text earns 0 or 1", () => {
  const text = fc.string({ unit: "binary" });
  fc.assert(
    fc.property(text, text, fc.boolean(), (completion, solution, firstLetter) => {
      expect([0, 1]).toContain(accuracy(completion, solution, { firstLetter }));
      expect([0, 1]).toContain(accuracy(`<answer>${completion}</answer>`, solution, { firstLetter }));
    }),
  );
});

/** Text of about n characters that a policy might come up with. */
const HOSTILE: Record<string, (n: number) => string> = {
  "unclosed answers": (n) => "<answer>".repeat(n / 8),
  "unclosed thoughts": (n) => "<think>".repeat(n / 7),
  "closed thoughts": (n) => `<think>${"</think>".repeat(n / 8)}`,
  "closed thoughts with spaces": (n) => `<think>${`</think>${" ".repeat(40)}`.repeat(n / 48)}`,
  "thoughts and open answers": (n) => `<think>${"</think><answer>".repeat(n / 16)}`,
  "many answers": (n) => "<answer>B</answer>".repeat(n / 18),
  "nested answers": (n) => `${"<answer>".repeat(n / 17)}A${"</answer>".repeat(n / 17)}`,
  "one long answer": (n) => `<answer>A${"a".repeat(n)}</answer>`,
  "an answer of spaces": (n) => `<answer>${" ".repeat(n)}</answer>`,
  "no tags": (n) => "A".repeat(n),
  "angle brackets": (n) => "<".repeat(n),
  "almost tags": (n) => "<answer".repeat(n / 7),
  "lone surrogates": (n) => `<answer>${"\ud800".repeat(n)}</answer>`,
  "combining marks": (n) => `<answer>A${"\u0301".repeat(n)}</answer>`,
};

test.each(Object.keys(HOSTILE))("%s: time grows with the length alone", (name) => {
  const build = HOSTILE[name] as (n: number) => string;
  const timeOf = (text: string) => {
    const start = performance.now();
    accuracy(text, "<answer>A.</answer>");
    accuracy(text, "<answer>A.</answer>", { firstLetter: true });
    accuracy(text, "an open-ended answer");
    format(text);
    return performance.now() - start;
  };
  expect(timeOf(build(100_000))).toBeLessThan(200);
  // Linear, this takes some milliseconds; quadratic (100,000 tags, each searched for to the end), more than a minute.
  expect(timeOf(build(1_600_000))).toBeLessThan(2000);
});
