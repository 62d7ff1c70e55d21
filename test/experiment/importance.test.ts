import { expect, test } from "vitest";
import { importances, spearman } from "../../src/experiment/importance.ts";
import type { Dimension, Params } from "../../src/experiment/space.ts";
import { uniform } from "../../src/random.ts";

const space: Dimension[] = [
  { knob: "much", kind: "range", min: 0, max: 1, log: false, step: undefined, points: undefined },
  { knob: "some", kind: "choice", values: ["a", "b"] },
  { knob: "none", kind: "range", min: 1e-6, max: 1, log: true, step: undefined, points: undefined },
];

test("shares of the variance come near those of a known function", () => {
  const trials = Array.from({ length: 200 }, (_, i) => {
    const params: Params = {
      much: uniform("m", i),
      some: uniform("s", i) < 0.5 ? "a" : "b",
      none: 10 ** (-6 * uniform("n", i)),
    };
    return { params, value: -4 * (params.much as number) + (params.some === "a" ? 1 : 0) };
  });
  const [first, second, third] = importances(space, trials);
  // Var(4 u) = 16 / 12, Var of a fair coin = 1 / 4: 84 % and 16 % of the sum.
  expect(first).toMatchObject({ knob: "much" });
  expect(Math.abs((first?.share as number) - 0.84)).toBeLessThan(0.1);
  expect(first?.correlation).toBeLessThan(-0.8);
  expect(second).toMatchObject({ knob: "some", correlation: null });
  expect(Math.abs((second?.share as number) - 0.16)).toBeLessThan(0.1);
  expect(third?.share).toBeLessThan(0.03);
});

test("nothing is claimed from too little", () => {
  const same = Array.from({ length: 9 }, (_, i) => ({ params: { much: i / 9, some: "a", none: 0.1 }, value: 1 }));
  expect(importances(space, same)).toEqual([]);
  expect(importances(space, same.slice(0, 3))).toEqual([]);
});

test("Spearman's rank correlation", () => {
  expect(spearman([1, 2, 3, 4], [10, 100, 1000, 1e6])).toBe(1);
  expect(spearman([1, 2, 3, 4], [4, 3, 2, 1])).toBe(-1);
  expect(spearman([1, 2, 2, 3], [1, 2, 3, 4])).toBeCloseTo(0.9486833, 6); // scipy.stats.spearmanr
  expect(spearman([1, 1, 1], [1, 2, 3])).toBe(0);
});
