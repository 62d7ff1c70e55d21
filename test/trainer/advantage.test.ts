import { expect, test } from "vitest";
import { assignAdvantages, groupAdvantages, uniformMetrics } from "../../src/trainer/advantage.ts";
import { fakeGroup } from "./fakes.ts";

// Closed forms for G = 8, ddof 1, eps 1e-4: k right answers out of eight.
test.each([
  [1, 2.4741739, -0.3534534],
  [2, 1.6198353, -0.5399451],
  [3, 1.2073814, -0.7244289],
  [4, 0.9352394, -0.9352394],
  [5, 0.7244289, -1.2073814],
  [6, 0.5399451, -1.6198353],
  [7, 0.3534534, -2.4741739],
])("%i of 8 right", (k, right, wrong) => {
  const rewards = Array.from({ length: 8 }, (_, i) => (i < k ? 1 : 0));
  const advantages = groupAdvantages(rewards, 1e-4);
  for (const [i, advantage] of advantages.entries()) expect(advantage).toBeCloseTo(i < k ? right : wrong, 6);
});

test.each([0, 1, 0.1])("eight rewards of %f give exactly 0", (reward) => {
  expect(groupAdvantages(new Array(8).fill(reward), 1e-4)).toEqual(new Array(8).fill(0));
});

test("advantages of a group sum to 0 and do not depend on the rewards' offset", () => {
  const rewards = [0.3, 1.7, -2, 0.4, 5];
  const advantages = groupAdvantages(rewards, 1e-4);
  expect(advantages.reduce((sum, a) => sum + a, 0)).toBeCloseTo(0, 12);
  const shifted = groupAdvantages(
    rewards.map((reward) => reward + 10),
    1e-4,
  );
  for (const [i, a] of shifted.entries()) expect(a).toBeCloseTo(advantages[i] as number, 9);
});

test("fills every group and counts the uniform ones", () => {
  const groups = [fakeGroup([1, 0]), fakeGroup([1, 1]), fakeGroup([0, 0]), fakeGroup([0, 1])];
  assignAdvantages(groups, 1e-4);
  expect(uniformMetrics(groups)).toEqual({ "reward/zero_std_frac": 0.5 });
  expect(groups[0]?.advantages[0]).toBeCloseTo(Math.SQRT1_2 / (1 + 1e-4 * Math.SQRT2), 9);
  expect(groups[1]?.advantages).toEqual([0, 0]);
});
