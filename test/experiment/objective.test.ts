import { expect, test } from "vitest";
import { type Line, metricAt, metricsAt, missingMetric } from "../../src/experiment/objective.ts";

const lines: Line[] = [
  { step: 1, "reward/mean": 0.2, "eval/L1/accuracy": 0.4 },
  { step: 2, "reward/mean": 0.4 },
  { step: 3, "reward/mean": 0.6 },
];

test("the mean over the last steps that have the metric, up to a step", () => {
  expect(metricAt(lines, { metric: "reward/mean", window: 2 })).toBeCloseTo(0.5, 12);
  expect(metricAt(lines, { metric: "reward/mean", window: 2 }, 2)).toBeCloseTo(0.3, 12);
  expect(metricAt(lines, { metric: "eval/L1/accuracy", window: 2 })).toBe(0.4);
  expect(metricAt(lines, { metric: "loss/kl", window: 2 })).toBeUndefined();
});

test("a number that was not finite, which JSON has as null, is none and not 0", () => {
  const read = JSON.parse(JSON.stringify([...lines, { step: 4, "reward/mean": Number.NaN, "loss/kl": Number.NaN }]));
  expect(metricAt(read, { metric: "reward/mean", window: 2 })).toBeCloseTo(0.5, 12);
  expect(Object.keys(metricsAt(read, 2)).sort()).toEqual(["eval/L1/accuracy", "reward/mean"]);
  expect(missingMetric("loss/kl", read, "objective: here").message).toBe(
    "objective: here has no metric loss/kl; there are eval/L1/accuracy, reward/mean",
  );
});
