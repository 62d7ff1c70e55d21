import { expect, test } from "vitest";
import { normal, pick, randomInt, shuffled, uniform } from "../src/random.ts";

test("the same keys give the same draw, other keys another", () => {
  expect(uniform(42, "sample", 3)).toBe(uniform(42, "sample", 3));
  const draws = [
    uniform(42),
    uniform("42"),
    uniform(42, 0),
    uniform(0, 42),
    uniform(-42),
    uniform(42.5),
    uniform("4", "2"),
  ];
  expect(new Set(draws).size).toBe(draws.length);
});

test("draws do not depend on the platform or on a release: pinned values", () => {
  expect(uniform(0)).toBe(0.30155650639650977);
  expect(uniform(42, "sample", "q1", 0, 7)).toBe(0.3530973385719671);
});

test("uniform over consecutive counters: mean, variance and every decile as expected", () => {
  const n = 100_000;
  const draws = Array.from({ length: n }, (_, i) => uniform(7, "sample", "id", i));
  const mean = draws.reduce((a, b) => a + b, 0) / n;
  const variance = draws.reduce((a, b) => a + (b - mean) ** 2, 0) / n;
  expect(mean).toBeCloseTo(0.5, 2);
  expect(variance).toBeCloseTo(1 / 12, 2);
  const deciles = new Array<number>(10).fill(0);
  for (const u of draws) deciles[Math.floor(u * 10)]!++;
  const chiSquare = deciles.reduce((sum, count) => sum + (count - n / 10) ** 2 / (n / 10), 0);
  expect(chiSquare).toBeLessThan(27.9); // 9 degrees of freedom, p = 0.001
});

test("neighbouring streams are not correlated", () => {
  const n = 20_000;
  let sum = 0;
  for (let i = 0; i < n; i++) sum += (uniform(1, "a", i) - 0.5) * (uniform(1, "a", i + 1) - 0.5) * 12;
  expect(Math.abs(sum / n)).toBeLessThan(4 / Math.sqrt(n));
});

test("every permutation of three is equally likely", () => {
  const counts = new Map<string, number>();
  for (let i = 0; i < 6000; i++) {
    const order = shuffled(["a", "b", "c"], 5, i).join("");
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  expect(counts.size).toBe(6);
  for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(120);
});

test("integers stay in range, picks come from the list, normals are standard", () => {
  for (let i = 0; i < 1000; i++) {
    expect(randomInt(3, "r", i)).toBeGreaterThanOrEqual(0);
    expect(randomInt(3, "r", i)).toBeLessThan(3);
    expect(["x", "y"]).toContain(pick(["x", "y"], "p", i));
  }
  const n = 20_000;
  const draws = Array.from({ length: n }, (_, i) => normal("n", i));
  expect(draws.reduce((a, b) => a + b, 0) / n).toBeCloseTo(0, 1);
  expect(draws.reduce((a, b) => a + b * b, 0) / n).toBeCloseTo(1, 1);
});

test("a key that is not finite is refused", () => {
  expect(() => uniform(Number.NaN)).toThrow(RangeError);
});
