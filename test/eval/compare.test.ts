import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import type { EvalRecord } from "../../src/eval/answers.ts";
import { compareRuns, comparisonTable, flipText, overlapOf, overlapProblems, readRun } from "../../src/eval/compare.ts";
import { capture } from "../cli/capture.ts";

const root = mkdtempSync(path.join(tmpdir(), "grove-compare-"));
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(root, { recursive: true }));

function record(id: number, given: string, gold = "A", more: Partial<EvalRecord> = {}): EvalRecord {
  return {
    sample_id: `q${id}`,
    prompt: [],
    problem: `Question ${id}?\nA. yes\nB. no`,
    solution: `<answer>${gold}.</answer>`,
    response: `<think>hm</think><answer>${given}</answer>`,
    reward: given === gold ? 1 : 0,
    ...more,
  };
}

let folders = 0;
function folderOf(files: Record<string, EvalRecord[]>): string {
  const folder = mkdtempSync(path.join(root, `run${folders++}-`));
  for (const [level, records] of Object.entries(files)) {
    writeFileSync(path.join(folder, `answers-${level}.jsonl`), records.map((r) => `${JSON.stringify(r)}\n`).join(""));
  }
  return folder;
}

/** Ten questions of L3: both right on 0-3, only a on 4, only b on 5-7, neither on 8-9; the even ones are Hobbies / baking. */
const place = (id: number): Partial<EvalRecord> =>
  id % 2 === 0
    ? {
        parts: [
          [
            ["domain", "Hobbies"],
            ["scenario", "baking"],
          ],
        ],
      }
    : { parts: [[["domain", "Work"]]] };
const of = (right: (id: number) => boolean) =>
  Array.from({ length: 10 }, (_, id) => record(id, right(id) ? "A" : "C", "A", place(id)));
const a = of((id) => id <= 4);
const b = of((id) => id <= 3 || (id >= 5 && id <= 7));

test("counts, differences and tests by level, domain and scenario", () => {
  const { rows } = compareRuns(readRun(folderOf({ L3: a })), readRun(folderOf({ L3: b })));
  expect(rows.map(({ name, n, both, onlyA, onlyB, neither }) => [name, n, both, onlyA, onlyB, neither])).toEqual([
    ["L3", 10, 4, 1, 3, 2],
    ["L3 / Hobbies", 5, 2, 1, 1, 1],
    ["L3 / Hobbies / baking", 5, 2, 1, 1, 1],
    ["L3 / Work", 5, 2, 0, 2, 1],
  ]);
  expect(rows[0]).toMatchObject({ accuracyA: 0.5, accuracyB: 0.7, difference: expect.closeTo(0.2, 12), p: 0.625 });
});

test("a part is shown by all of its name", () => {
  const named = a.map((one) => ({ ...one, parts: [[["domain", "Hobbies / crafts"]]] as EvalRecord["parts"] }));
  const { rows } = compareRuns({ L3: new Map(named.map((one) => [one.sample_id, one])) }, readRun(folderOf({ L3: b })));
  expect(comparisonTable(rows).split("\n")[3]).toMatch(/^ {2}Hobbies \/ crafts +10 /);
});

test("the questions that flipped, with what both answered", () => {
  const { flips } = compareRuns(readRun(folderOf({ L3: a })), readRun(folderOf({ L3: b })));
  expect(flips.map(({ sample_id, right }) => [sample_id, right])).toEqual([
    ["q4", "a"],
    ["q5", "b"],
    ["q6", "b"],
    ["q7", "b"],
  ]);
  expect(flipText(flips[1]!)).toBe("L3 q5: Question 5?\n    gold A.  |  A: C  |  *B: A");
});

test("what is not the same question is neither compared nor passed over in silence", () => {
  const other = [...b.slice(0, 8), record(8, "A", "B"), { ...record(9, "A"), problem: "Another?" }, record(11, "A")];
  const [runA, runB] = [readRun(folderOf({ L1: a, L3: a })), readRun(folderOf({ L3: other }))];
  expect(overlapOf(runA, runB)).toEqual([
    { level: "L1", shared: 0, different: 0, onlyA: 10, onlyB: 0 },
    { level: "L3", shared: 8, different: 2, onlyA: 0, onlyB: 1 },
  ]);
  expect(overlapProblems(overlapOf(runA, runB))).toEqual([
    "L1: 0 questions in common, 10 only in a",
    "L3: 8 questions in common, 1 only in b, 2 with the same id but another text or gold answer",
  ]);
  expect(compareRuns(runA, runB).rows[0]).toMatchObject({ name: "L3", n: 8 });
});

test("answers of shares and a torn line are read as far as they go", () => {
  const folder = folderOf({ "L3.shard-1-of-2": a.slice(0, 5), "L3.shard-2-of-2": a.slice(5) });
  writeFileSync(path.join(folder, "answers-L1.jsonl"), `${JSON.stringify(a[0])}\n{"sample_id":"q`);
  const run = readRun(folder);
  expect(Object.fromEntries(Object.entries(run).map(([level, answers]) => [level, answers.size]))).toEqual({
    L1: 1,
    L3: 10,
  });
});

test("long names and texts do not make a row wider than 100 columns", () => {
  const long = { parts: [[["domain", "W".repeat(60)]]] as EvalRecord["parts"], problem: `${"why ".repeat(60)}\nA. x` };
  const many = Array.from({ length: 2500 }, (_, id) =>
    record(id, id % 2 ? "A" : `C ${"c".repeat(99)}`, "A", long as never),
  );
  const reversed = many.map((one, id) => ({ ...one, reward: 1 - one.reward, response: id % 2 ? "B" : "A" }));
  const { rows, flips } = compareRuns(readRun(folderOf({ L1: many })), readRun(folderOf({ L1: reversed })));
  const lines = [comparisonTable(rows), ...flips.slice(0, 3).map(flipText)].join("\n").split("\n");
  for (const line of lines) expect([...line].length).toBeLessThanOrEqual(100);
});

test("the command prints the table, writes figures and flips, and refuses runs on other questions", async () => {
  const [folderA, folderB] = [folderOf({ L3: a }), folderOf({ L3: b.slice(0, 9) })];
  const errors = capture(process.stderr);
  expect(await main(["compare", "--a", folderA, "--b", folderB])).toBe(1);
  expect(errors.text).toContain("do not answer the same questions");
  expect(errors.text).toContain("L3: 9 questions in common, 1 only in a");
  expect(await main(["compare", "--a", folderA, "--b", path.join(root, "nothing")])).toBe(1);
  expect(errors.text).toContain("holds no answers-<level>.jsonl");

  const [json, flips] = [path.join(root, "compared.json"), path.join(root, "flips.jsonl")];
  const out = capture(process.stdout);
  const files = ["--json", json, "--flips", flips, "--show", "1"];
  expect(await main(["compare", "--a", folderA, "--b", folderB, "--allow-subset", ...files])).toBe(0);
  expect(out.text).toContain("4 questions flipped (* right), the first 1:");
  expect(out.text).toContain(`Settings are not compared: ${folderA} has no evaluation.json`);
  expect(out.text).toMatch(/L3 +9 +55\.6 +77\.8 +\+22\.2/);
  expect(JSON.parse(readText(json)).rows[0]).toMatchObject({ name: "L3", n: 9, onlyB: 3 });
  expect(readText(flips).trim().split("\n")).toHaveLength(4);
});

function readText(file: string): string {
  return readFileSync(file, "utf8");
}
