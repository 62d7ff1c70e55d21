import { expect, test } from "vitest";
import { meanInterval, pairedMeans, tQuantile, tTail } from "../../src/eval/student.ts";

test("quantiles and tails of Student's t, from scipy.stats.t", () => {
  expect(tQuantile(0.975, 1)).toBeCloseTo(12.706204736432095, 8);
  expect(tQuantile(0.975, 2)).toBeCloseTo(4.302652729911275, 8);
  expect(tQuantile(0.975, 9)).toBeCloseTo(2.2621571628540993, 8);
  expect(tQuantile(0.975, 200)).toBeCloseTo(1.9718962236316089, 8);
  expect(tTail(0, 5)).toBeCloseTo(0.5, 12);
  expect(tTail(2, 4)).toBeCloseTo(0.05805826175840781, 10);
  expect(tTail(10, 3)).toBeCloseTo(0.00106419952920707, 12);
});

test("means of repeats, and pairs of them", () => {
  const { mean, interval } = meanInterval([1, 2, 3, 4]);
  expect(mean).toBe(2.5);
  expect(interval?.[0]).toBeCloseTo(0.44573974323912, 8); // scipy.stats.t.interval
  expect(interval?.[1]).toBeCloseTo(4.5542602567608785, 8);
  const { difference, p } = pairedMeans([0.5, 0.6, 0.4], [0.7, 0.75, 0.5]);
  expect(difference).toBeCloseTo(0.15);
  expect(p).toBeCloseTo(0.0350987186459846, 8); // scipy.stats.ttest_rel
});

test("one repeat has no interval, and equal differences no p", () => {
  expect(meanInterval([0.4])).toEqual({ mean: 0.4, interval: null });
  expect(pairedMeans([0.4], [0.5])).toMatchObject({ interval: null, p: null });
  expect(pairedMeans([1, 2], [3, 4])).toEqual({ difference: 2, interval: [2, 2], p: null });
});
