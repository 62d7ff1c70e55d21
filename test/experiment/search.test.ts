import { expect, test } from "vitest";
import { goesOn, rungsOf } from "../../src/experiment/halving.ts";
import { choiceEstimator, rangeEstimator } from "../../src/experiment/parzen.ts";
import { propose, type Search } from "../../src/experiment/search.ts";
import {
  type Choice,
  type Dimension,
  fromUnit,
  type Params,
  type Range,
  settingAt,
  sizeOf,
  toUnit,
  valuesOf,
} from "../../src/experiment/space.ts";

const range = (knob: string, min: number, max: number, more: Partial<Range> = {}): Range => {
  return { knob, kind: "range", min, max, log: false, step: undefined, points: undefined, ...more };
};
const choice = (knob: string, values: unknown[]): Choice => ({ knob, kind: "choice", values });

function best(
  kind: Search["kind"],
  space: Dimension[],
  f: (params: never) => number,
  seed: number,
  trials: number,
): number {
  const search: Search = {
    kind,
    space,
    seed,
    tpe: { startup: 8, gamma: 0.2, candidates: 24 },
    first: [],
    isValid: () => true,
  };
  const done: { params: Params; value: number }[] = [];
  for (let trial = 0; trial < trials; trial++) {
    const ranked = [...done].sort((a, b) => b.value - a.value).map(({ params }) => params);
    const tried = done.map(({ params }) => params);
    const params = propose(search, trial, tried, ranked);
    if (params === undefined) break;
    done.push({ params, value: f(params as never) });
  }
  return Math.max(...done.map(({ value }) => value));
}

/** Branin's function, turned over: its best value is -0.398. */
const branin = ({ x, y }: { x: number; y: number }) =>
  -(
    (y - (5.1 / (4 * Math.PI ** 2)) * x * x + (5 / Math.PI) * x - 6) ** 2 +
    10 * (1 - 1 / (8 * Math.PI)) * Math.cos(x) +
    10
  );
const mixed = ({ rate, kind, size }: { rate: number; kind: string; size: number }) =>
  -((Math.log10(rate) + 4) ** 2) - (kind === "c" ? 0 : 1) - Math.abs(size - 12) / 8;

// Each seed is a pair of searches; were both equally good, 22 wins in 30 pairs would come by chance in 1 of 100.
test.each([
  ["Branin's function", [range("x", -5, 10), range("y", 0, 15)], branin, 50],
  [
    "a log range, a choice and whole numbers",
    [range("rate", 1e-6, 1e-1, { log: true }), choice("kind", ["a", "b", "c", "d"]), range("size", 2, 16, { step: 1 })],
    mixed,
    50,
  ],
] as const)("TPE finds better than random search: %s", (_name, space, f, trials) => {
  const seeds = Array.from({ length: 30 }, (_, seed) => seed);
  const pairs = seeds.map(
    (seed) => [best("tpe", [...space], f, seed, trials), best("random", [...space], f, seed, trials)] as const,
  );
  expect(pairs.filter(([tpe, random]) => tpe > random).length).toBeGreaterThanOrEqual(22);
});

test("searches repeat with their seed, and never try a setting twice", () => {
  const space = [choice("a", [1, 2, 3]), choice("b", [true, false])];
  for (const kind of ["grid", "random", "tpe"] as const) {
    const search: Search = {
      kind,
      space,
      seed: 3,
      tpe: { startup: 2, gamma: 0.2, candidates: 4 },
      first: [{ a: 2, b: true }],
      isValid: ({ a, b }) => !(a === 3 && b === true),
    };
    const all = () => {
      const tried: Params[] = [];
      for (
        let params = propose(search, 0, [], []);
        params !== undefined;
        params = propose(search, tried.length, tried, tried)
      )
        tried.push(params);
      return tried;
    };
    expect(all()).toEqual(all());
    expect(all()[0]).toEqual({ a: 2, b: true });
    expect(all()).toHaveLength(5); // of 6 settings one makes no sense
    expect(new Set(all().map((params) => JSON.stringify(params))).size).toBe(5);
  }
});

test("ranges: log, steps, rounding, and back", () => {
  const log = range("x", 1e-6, 1e-2, { log: true });
  expect(fromUnit(log, 0.5)).toBeCloseTo(1e-4, 12);
  expect([0, 1].map((unit) => fromUnit(log, unit))).toEqual([1e-6, 1e-2]);
  expect(toUnit(log, 1e-3)).toBeCloseTo(0.75);
  const whole = range("n", 2, 16, { step: 2 });
  expect(valuesOf(whole)).toEqual([2, 4, 6, 8, 10, 12, 14, 16]);
  const drawn = Array.from({ length: 800 }, (_, i) => fromUnit(whole, (i + 0.5) / 800));
  for (const value of valuesOf(whole) as number[]) expect(drawn.filter((one) => one === value)).toHaveLength(100);
  expect(valuesOf(range("x", 0, 1, { points: 5 }))).toEqual([0, 0.25, 0.5, 0.75, 1]);
  expect(valuesOf(range("x", 1e-4, 1e-2, { log: true, points: 3 }))).toEqual([1e-4, 1e-3, 1e-2]);
  const space = [choice("a", ["x", "y"]), whole];
  expect(sizeOf(space)).toBe(16);
  expect([settingAt(space, 0), settingAt(space, 9)]).toEqual([
    { a: "x", n: 2 },
    { a: "y", n: 4 },
  ]);
});

test("a knob with very many values is counted without making a list of them", () => {
  const space = [range("n", 0, 2 ** 40, { step: 1 }), choice("a", ["x", "y"])];
  expect(sizeOf(space)).toBe(2 * (2 ** 40 + 1));
  expect(settingAt(space, 2 ** 40 + 3)).toEqual({ n: 2 ** 39 + 1, a: "y" });
});

test("estimators are densities: they sum to one, and draws follow them", () => {
  const x = range("x", 0, 1);
  const estimator = rangeEstimator(x, [0.2, 0.25, 0.9]);
  const grid = Array.from({ length: 2000 }, (_, i) => (i + 0.5) / 2000);
  const density = grid.map((at) => Math.exp(estimator.logDensity(at)));
  expect(density.reduce((sum, one) => sum + one / 2000, 0)).toBeCloseTo(1, 3);
  const below = grid.reduce((sum, at, i) => sum + (at < 0.4 ? (density[i] as number) / 2000 : 0), 0);
  const draws = Array.from({ length: 2000 }, (_, i) => estimator.draw("draw", i) as number);
  expect(draws.filter((one) => one < 0.4).length / 2000).toBeCloseTo(below, 1);
  const c = choiceEstimator(choice("c", ["a", "b"]), ["a", "a", "b"]);
  expect(["a", "b"].map((value) => Math.exp(c.logDensity(value)))).toEqual([
    expect.closeTo(3 / 5),
    expect.closeTo(2 / 5),
  ]);
});

test("halving: rungs, and who goes on at one", () => {
  expect(rungsOf({ minSteps: 5, factor: 3 }, 100)).toEqual([5, 15, 45]);
  expect(rungsOf({ minSteps: 5, factor: 3 }, 45)).toEqual([5, 15]);
  const factor = 3;
  expect(goesOn(1, [1], { factor })).toBe(true); // the first one: nothing speaks against it
  expect(goesOn(1, [1, 2], { factor })).toBe(false); // with two, only the best
  const values = [9, 8, 7, 6, 5, 4, 3, 2, 1];
  expect(values.filter((value) => goesOn(value, values, { factor }))).toEqual([9, 8, 7]);
  expect(goesOn(7, [7, 7, 7], { factor })).toBe(true);
});
