import { expect, test } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { learningRate } from "../../src/trainer/schedule.ts";

const defaults = configSchema.parse({ model: { path: "unused" } }).optimizer;

// transformers 5.23.0: get_scheduler(name, optimizer with lr 1, ceil(total * warmupFraction), total); "constant" there without
// warm-up, "constant_with_warmup" with.
test.each([
  ["linear", 10, 0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]],
  [
    "linear",
    10,
    0.25,
    [0, 1 / 3, 2 / 3, 1, 0.857142857, 0.714285714, 0.571428571, 0.428571429, 0.285714286, 0.142857143],
  ],
  ["cosine", 10, 0.1, [0, 1, 0.96984631, 0.883022222, 0.75, 0.586824089, 0.413175911, 0.25, 0.116977778, 0.03015369]],
  ["cosine", 7, 0.3, [0, 1 / 3, 2 / 3, 1, 0.853553391, 0.5, 0.146446609]],
  ["constant", 8, 0.25, [0, 0.5, 1, 1, 1, 1, 1, 1]],
] as const)("%s over %i updates with warm-up %f is Hugging Face's", (schedule, total, warmupFraction, expected) => {
  const config = { ...defaults, schedule, warmupFraction, learningRate: 2 };
  for (const [update, rate] of expected.entries()) {
    expect(learningRate(config, update, total)).toBeCloseTo(2 * rate, 8);
  }
});

test("the rate stays at its end after the last update", () => {
  expect(learningRate({ ...defaults, schedule: "linear" }, 12, 10)).toBe(0);
  expect(learningRate({ ...defaults, schedule: "cosine" }, 12, 10)).toBe(0);
});
