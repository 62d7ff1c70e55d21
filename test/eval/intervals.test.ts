import { expect, test } from "vitest";
import { wilsonInterval } from "../../src/eval/intervals.ts";

// scipy 1.x: binomtest(k, n).proportion_ci(method="wilson")
test.each([
  [8, 10, 0.4901624715, 0.9433178485],
  [1119, 2432, 0.440385124, 0.4799709405],
  [0, 20, 0, 0.161125158],
  [20, 20, 0.838874842, 1],
])("%i of %i", (correct, total, low, high) => {
  const [a, b] = wilsonInterval(correct, total);
  expect(a).toBeCloseTo(low, 9);
  expect(b).toBeCloseTo(high, 9);
});

test("both ends lie z standard errors from the observed share, at their own standard error", () => {
  for (const end of wilsonInterval(37, 240)) {
    expect(Math.abs(37 / 240 - end)).toBeCloseTo(1.959963984540054 * Math.sqrt((end * (1 - end)) / 240), 12);
  }
});

test("nothing asked says nothing", () => {
  expect(wilsonInterval(0, 0)).toEqual([0, 1]);
});
