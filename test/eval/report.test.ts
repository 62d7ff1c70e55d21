import { expect, test } from "vitest";
import type { Parts } from "../../src/eval/parts.ts";
import { PUBLISHED } from "../../src/eval/published.ts";
import { type EvalResults, evalTable, summarize } from "../../src/eval/report.ts";

const leaf = (correct: number, n: number, parts: Parts = {}) => ({ correct, n, parts });
const results: EvalResults = {
  L1: { correct: 8, n: 10, parts: {}, skipped: 0 },
  L3: {
    correct: 3,
    n: 12,
    parts: {
      domain: { Work: leaf(1, 5), Hobbies: leaf(2, 7, { scenario: { crafts: leaf(2, 4), baking: leaf(0, 3) } }) },
    },
    skipped: 2,
  },
};

test("the table has a row per level and per part, aligned", () => {
  expect(evalTable(results).split("\n")).toEqual([
    "level       right  accuracy  95 % interval",
    "----------  -----  --------  -------------",
    "L1           8/10    80.0 %  49.0 - 94.3 %",
    "L3           3/12    25.0 %   8.9 - 53.2 %",
    "  Hobbies     2/7    28.6 %   8.2 - 64.1 %",
    "    baking    0/3     0.0 %   0.0 - 56.1 %",
    "    crafts    2/4    50.0 %  15.0 - 85.0 %",
    "  Work        1/5    20.0 %   3.6 - 62.4 %",
    "  skipped       2",
  ]);
});

test("published figures stand beside the levels that are said to be that benchmark, and beside no other", () => {
  const table = evalTable(results, { L3: "seed-bench-r1-L3" }).split("\n");
  expect(table[0]).toBe("level       right  accuracy  95 % interval  Vanilla*   SFT*  GRPO*");
  expect(table[2]).toBe("L1           8/10    80.0 %  49.0 - 94.3 %");
  expect(table[3]).toBe("L3           3/12    25.0 %   8.9 - 53.2 %     31.57  38.15  44.89");
  expect(table[4]).toBe("  Hobbies     2/7    28.6 %   8.2 - 64.1 %     32.30  41.02  45.08");
  expect(table[5]).toBe("    baking    0/3     0.0 %   0.0 - 56.1 %");
  expect(table.slice(-2)).toEqual([
    "* published: SEED-Bench-R1, arXiv 2503.24376: Qwen2-VL-7B, 16 frames.",
    "L3: 14 questions here, 1321 in the published set: not the same questions.",
  ]);
  expect(evalTable(results, { L1: undefined, L3: undefined })).toBe(evalTable(results));
});

test("durations come in their order, with LongVideoBench's figures", () => {
  const duration = { "(900,3600]": leaf(1, 4), "(8,15]": leaf(3, 4), "(15,60]": leaf(2, 4), "(180,600]": leaf(2, 4) };
  const long: EvalResults = { LVB: { correct: 8, n: 16, parts: { duration }, skipped: 0 } };
  const rows = evalTable(long, { LVB: "longvideobench" }).split("\n");
  expect(rows.slice(2, 7).map((row) => row.trim().split(/ {2,}/))).toEqual([
    ["LVB", "8/16", "50.0 %", "28.0 - 72.0 %", "32.9", "40.0", "43.4"],
    ["(8,15]", "3/4", "75.0 %", "30.1 - 95.4 %", "42.3", "45.0", "54.5"],
    ["(15,60]", "2/4", "50.0 %", "15.0 - 85.0 %", "44.8", "54.7", "53.5"],
    ["(180,600]", "2/4", "50.0 %", "15.0 - 85.0 %", "34.0", "36.7", "42.5"],
    ["(900,3600]", "1/4", "25.0 %", "4.6 - 69.9 %", "25.4", "36.4", "37.2"],
  ]);
});

test("every published percentage of SEED-Bench-R1 but the known slip is a whole number of questions", () => {
  const counts = (level: string, part?: string) => {
    const { questions = 0, all, parts } = PUBLISHED[level]!;
    const sizes: Record<string, number> = { "daily life": 439, hobbies: 295, recreation: 183, work: 404 };
    const figures = part === undefined ? all : parts!.domain![part]!;
    const n = part === undefined ? questions : (sizes[part] as number);
    return Object.values(figures).map((percent) => {
      const right = Math.round((percent / 100) * n);
      return ((100 * right) / n).toFixed(2) === percent.toFixed(2) ? right : Number.NaN;
    });
  };
  expect(counts("seed-bench-r1-L1")).toEqual([846, 1065, 1119]);
  expect(counts("seed-bench-r1-L2")).toEqual([314, 407, 463]);
  expect(counts("seed-bench-r1-L3")).toEqual([417, 504, 593]);
  const domains = ["daily life", "hobbies", "recreation", "work"].map((part) => counts("seed-bench-r1-L3", part));
  expect(domains[1]?.[0]).toBeNaN(); // 32.30
  expect(domains.map(([, sft]) => sft).reduce((sum, n) => sum! + n!, 0)).toBe(504);
  expect(domains.map(([, , grpo]) => grpo).reduce((sum, n) => sum! + n!, 0)).toBe(593);
});

test("no row is wider than 100 columns, whatever a part is called", () => {
  const named: EvalResults = {
    L3: { correct: 1, n: 1321, parts: { domain: { ["äöü".repeat(40)]: leaf(1, 1321) } }, skipped: 0 },
  };
  for (const row of evalTable(named, { L3: "seed-bench-r1-L3" }).split("\n"))
    expect([...row].length).toBeLessThanOrEqual(100);
});

test("SEED-Bench-R1 with its domains fits 80 columns; a domain named like an object's member has no figures", () => {
  const parts = {
    domain: {
      "Daily life": leaf(213, 439, { scenario: { "household chores": leaf(9, 439) } }),
      constructor: leaf(0, 1),
    },
  };
  const whole: EvalResults = { L1: { correct: 1119, n: 2432, parts, skipped: 0 } };
  const rows = evalTable(whole, { L1: "seed-bench-r1-L3" }).split("\n");
  for (const row of rows) expect(row.length).toBeLessThanOrEqual(80);
  expect(rows.find((row) => row.startsWith("  constructor"))).toMatch(/79\.3 %$/);
});

test("nothing answered is no accuracy", () => {
  expect(evalTable({ L1: { correct: 0, n: 0, parts: {}, skipped: 3 } }).split("\n")[2]).toMatch(/^L1 +0\/0 +- +-$/);
});

test("the summary holds accuracy, counts and interval", () => {
  const { L1 } = summarize(results);
  expect(L1).toMatchObject({ accuracy: 0.8, n: 10, correct: 8 });
  expect(L1?.low).toBeCloseTo(0.49016, 4);
  expect(L1?.high).toBeCloseTo(0.94332, 4);
});
