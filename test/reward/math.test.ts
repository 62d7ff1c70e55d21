import { spawnSync } from "node:child_process";
import fc from "fast-check";
import { expect, test } from "vitest";
import { mathEqual } from "../../src/reward/math/equal.ts";
import { math } from "../../src/reward/math.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { groupOf } from "./helpers.ts";

// completion, solution, reward
test.each([
  ["<think>2+2</think><answer>4</answer>", "4", 1],
  ["<answer>\\boxed{4}</answer>", "<answer>4</answer>", 1],
  ["<think>so</think> the answer is \\boxed{\\frac{1}{2}}.", "0.5", 1],
  ["\\boxed{3} no, \\boxed{4}", "\\boxed{4}", 1],
  ["\\boxed{\\text{a \\{ b}} \\boxed{4", "4", 0], // the last one is not closed
  ["<answer>The answer is 4.</answer>", "4", 1],
  ["<answer>We get $x = 4$ at last</answer>", "4", 1],
  ["<answer>the area is \\(4\\pi\\) cm</answer>", "4\\pi", 1],
  ["<answer>4 or 5</answer>", "4", 0],
  ["<answer>$4$ is 5</answer>", "5", 1],
  ["<answer>$4$ is 5</answer>", "4", 0], // one guess
  ["<answer>It is 4, or $5$</answer>", "4", 0],
  ["<answer>$3$+$4$</answer>", "7", 1],
  ["<answer>3 1/2</answer>", "3.5", 1],
  ["<answer>-7/2</answer>", "-3 1/2 hours", 1],
  ["<answer>3 1/2</answer>", "1.5", 0],
  ["<answer>$3$+$4$</answer>", "4", 0],
  ["<answer>The total is $18 dollars.</answer>", "18", 1],
  ["<answer>5</answer><answer>4</answer>", "4", 0],
  ["4", "4", 0], // neither block nor box
  ["", "4", 0],
  ["<answer></answer>", "4", 0],
  ["<answer>4</answer>", "", 0],
  ["<answer>18</answer>", "Janet sells 16 - 3 - 4 = 9 eggs.\n#### 18", 1],
  ["<answer>Paris</answer>", "paris", 1],
  ["<answer>act</answer>", "cat", 0],
  ["<answer>ba</answer>", "ab", 1],
  ["<answer>north east</answer>", "north  east", 1],
  ["<answer>Ａ</answer>", "A", 0],
  ["<answer>$4$</answer>", "4", 1],
  ["<answer>x</answer>", "X", 0],
] as const)("%j for %j earns %d", async (completion, solution, reward) => {
  expect(await math([completion], [solution])).toEqual([reward]);
});

test("it is a built-in reward, also next to others", async () => {
  const group = groupOf(["<answer>1/2</answer>", "<answer>0.6</answer>"], { solution: "<answer>50\\%</answer>" });
  const rewards = createRewards([
    { name: "math", weight: 2, timeoutS: 1 },
    { name: "accuracy", weight: 1, timeoutS: 1 },
  ]);
  await rewards.score([group]);
  expect(group.rewardBreakdown).toEqual({ math: [1, 0], accuracy: [0, 0] });
});

test("a run without it does not load the parser", () => {
  const loaded = (script: string) => {
    const args = ["--import", "tsx", "--input-type=module", "-e", script];
    return spawnSync(process.execPath, args, { encoding: "utf8", env: { ...process.env, NODE_DEBUG: "esm" } }).stderr;
  };
  const without = loaded('await import("./src/reward/rewards.ts");');
  expect(without).toContain("src/reward/math.ts");
  expect(without).not.toContain("node_modules/mathjs");
  const used = 'await (await import("./src/reward/math.ts")).math(["<answer>1</answer>"], ["1"]);';
  expect(loaded(used)).toContain("node_modules/mathjs");
});

const hostile: [name: string, text: string][] = [
  ["a tower of powers", "9^9^9^9"],
  ["a tower in braces", "9^{9^{9^{9^{9}}}}"],
  ["a number beyond doubles", "1e999"],
  ["a large factorial", "(10^9)!"],
  ["factorials of factorials", "170!!!!!!!!"],
  ["a huge binomial", "\\binom{1000000000}{500000000}"],
  ["many factorials", "x!".repeat(290)],
  ["open brackets", "(".repeat(100_000)],
  ["open fractions", "\\frac{".repeat(99)],
  ["nested roots", `${"\\sqrt{".repeat(80)}2${"}".repeat(80)}`],
  ["nested calls", `${"sin(".repeat(140)}1${")".repeat(140)}`],
  ["bars", "|".repeat(598)],
  ["bars and ones", "|1".repeat(299)],
  ["signs", `${"-".repeat(598)}1`],
  ["a chain of powers", `${"2^".repeat(298)}2`],
  ["functions of functions", `${"\\sin".repeat(149)}x`],
  ["nested tuples", `${"(1,".repeat(190)}1${")".repeat(190)}`],
  ["a long list", "1,".repeat(290)],
  ["relations", "<=".repeat(299)],
  ["a wide matrix", `\\begin{pmatrix}${"1&".repeat(280)}\\end{pmatrix}`],
  ["backslashes", "\\".repeat(599)],
  ["lone surrogates", "\ud800".repeat(500)],
  ["fullwidth digits", "４２".repeat(200)],
  ["right to left", "\u202e42\u202c".repeat(50)],
  ["combining marks", `4${"\u0301".repeat(500)}2`],
  ["100 kB of LaTeX", "\\frac{1}{2}+".repeat(8500)],
  ["a call out of the notation", 'import("fs")'],
  ["a property", "x.constructor"],
  ["a member's name as a command", "\\constructor"],
  ["a matrix index", "[1:2]"],
  ["an object", "{a:1}"],
  ["configuration", "config({})"],
];

test.each(hostile)("%s is wrong, in no time", async (_name, text) => {
  await math([""], ["1"]); // loads the parser
  const start = performance.now();
  const golds = ["42", "x+1", "\\{1,2\\}", "x>3", "Infinity", "42"];
  expect(
    await math(
      golds.map(() => `<answer>${text}</answer>`),
      golds,
    ),
  ).toEqual(golds.map(() => 0));
  expect(await math([`\\boxed{${text}}`], ["42"])).toEqual([0]);
  expect(performance.now() - start).toBeLessThan(1500);
});

test("whatever is written is 0 or 1, soon, and the same either way round", () => {
  const piece = fc.constantFrom(
    ..."{ } ( ) [ ] ^ _ x y 2 10 . + - * / , = < | ! % & i e \\frac \\sqrt \\sin \\log \\pi \\infty \\cup \\pm \\left \\right \\\\ \\{ \\} \\boxed \\binom \\text{and}".split(
      " ",
    ),
  );
  const start = performance.now();
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 60 }), fc.array(piece, { maxLength: 12 }), (a, b) => {
      const [given, gold] = [a.join(""), b.join("")];
      expect(mathEqual(given, gold)).toBe(gold !== "" && given !== "" && mathEqual(gold, given));
    }),
    { numRuns: 2000 },
  );
  expect(performance.now() - start).toBeLessThan(20_000);
});
