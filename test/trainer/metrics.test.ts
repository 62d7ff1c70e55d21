import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { Eta, firstNonFinite, pickMetrics, rolloutMetrics, StopWatch } from "../../src/trainer/metrics.ts";
import { fakeCompletion, fakeGroup } from "./fakes.ts";

test("a stop watch adds up by name, waits for what runs on, and counts failed work too", async () => {
  let settled = 0;
  const watch = new StopWatch(() => settled++);
  expect(await watch.time("a", () => sleep(20, 7))).toBe(7);
  await watch.time("a", () => sleep(20));
  await expect(watch.time("b", () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  const times = watch.metrics();
  expect(Object.keys(times)).toEqual(["time/a_s", "time/b_s", "time/step_s"]);
  expect(times["time/a_s"]).toBeGreaterThan(0.035);
  expect(times["time/step_s"]).toBeGreaterThanOrEqual(times["time/a_s"] as number);
  expect(watch.seconds("never")).toBe(0);
  expect(settled).toBe(2);
});

test("what completions look like", () => {
  const completions = [fakeCompletion(2), fakeCompletion(6, { finish: "length" })];
  const groups = [{ ...fakeGroup([0, 1]), completions }, fakeGroup([0, 1], "b", [4, 4])];
  expect(rolloutMetrics(groups, 2)).toEqual({
    "rollout/length_mean": 4,
    "rollout/length_max": 6,
    "rollout/truncated_frac": 0.25,
    "rollout/entropy": 1,
    "rollout/tokens_per_s": 8,
    "data/prompt_tokens_mean": 4,
  });
});

test("the first metric that is not finite is named", () => {
  expect(firstNonFinite({ a: 1, b: Number.NaN, c: Number.POSITIVE_INFINITY })).toEqual(["b", Number.NaN]);
  expect(firstNonFinite({ a: 1 })).toBeUndefined();
  expect(pickMetrics({ "x/a": 1, "x/b": 2, "y/a": 3 }, "x/")).toEqual({ "x/a": 1, "x/b": 2 });
});

test("the time left is the mean step times the steps left", async () => {
  const start = performance.now();
  const eta = new Eta();
  await sleep(30);
  const left = eta.tick(10);
  expect(left).toBeGreaterThan(0.28);
  expect(left).toBeLessThanOrEqual((10 * (performance.now() - start)) / 1000);
  expect(eta.tick(0)).toBe(0);
});
