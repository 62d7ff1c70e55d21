import { expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { meanStd } from "../../src/reward/statistics.ts";
import { assignAdvantages, BASELINES, batchAdvantages, uniformMetrics } from "../../src/trainer/advantage.ts";
import { fakeGroup } from "./fakes.ts";

type Knobs = Pick<Config["trainer"], "advantage" | "advantageScale" | "advantageEps">;
const knobs = (more: Partial<Knobs> = {}): Knobs => ({
  ...{ advantage: "grpo", advantageScale: "group", advantageEps: 1e-4 },
  ...more,
});
const groupAdvantages = (rewards: number[], more: Partial<Knobs> = {}) =>
  batchAdvantages([rewards], knobs(more))[0] as number[];

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
  const advantages = groupAdvantages(rewards);
  for (const [i, advantage] of advantages.entries()) expect(advantage).toBeCloseTo(i < k ? right : wrong, 6);
});

test.each([
  0, 1, 0.1,
])("eight rewards of %f give exactly 0, whatever they are compared with and divided by", (reward) => {
  const rewards = new Array(8).fill(reward);
  for (const advantage of Object.keys(BASELINES) as Knobs["advantage"][])
    for (const advantageScale of ["group", "batch", "none"] as const)
      for (const advantageEps of [0, 1e-4])
        expect(groupAdvantages(rewards, { advantage, advantageScale, advantageEps })).toEqual(new Array(8).fill(0));
});

test("advantages of a group sum to 0 and do not depend on the rewards' offset", () => {
  const rewards = [0.3, 1.7, -2, 0.4, 5];
  const advantages = groupAdvantages(rewards);
  expect(advantages.reduce((sum, a) => sum + a, 0)).toBeCloseTo(0, 12);
  const shifted = groupAdvantages(rewards.map((reward) => reward + 10));
  for (const [i, a] of shifted.entries()) expect(a).toBeCloseTo(advantages[i] as number, 9);
});

test("fills every group and counts the uniform ones", () => {
  const groups = [fakeGroup([1, 0]), fakeGroup([1, 1]), fakeGroup([0, 0]), fakeGroup([0, 1])];
  assignAdvantages(groups, knobs());
  expect(uniformMetrics(groups)).toEqual({ "reward/zero_std_frac": 0.5 });
  expect(groups[0]?.advantages[0]).toBeCloseTo(Math.SQRT1_2 / (1 + 1e-4 * Math.SQRT2), 9);
  expect(groups[1]?.advantages).toEqual([0, 0]);
});

test("AReaL tests/test_functional.py: leave-one-out of [1, 2, 3, 4] is [-2, -2/3, 2/3, 2]", () => {
  const found = groupAdvantages([1, 2, 3, 4], { advantage: "rloo", advantageScale: "none" });
  for (const [i, expected] of [-2, -2 / 3, 2 / 3, 2].entries()) expect(found[i]).toBeCloseTo(expected, 12);
});

test("without a scale a group's advantages are r - mean", () => {
  expect(groupAdvantages([1, 0, 0, 0], { advantageScale: "none" })).toEqual([0.75, -0.25, -0.25, -0.25]);
});

const batch = [
  [1, 0, 0, 1],
  [0, 0, 0, 0],
  [1, 1, 1, 0],
];
const all = batch.flat();
const mean = all.reduce((sum, r) => sum + r, 0) / all.length; // 5 / 12
const deviation = Math.sqrt(all.reduce((sum, r) => sum + (r - mean) ** 2, 0) / (all.length - 1));

test("verl tests/trainer/ppo/test_core_algos_on_cpu.py: rloo is G / (G - 1) times r - mean of the group, loop and vector", () => {
  const found = batchAdvantages(batch, knobs({ advantage: "rloo", advantageScale: "none" }));
  for (const [g, rewards] of batch.entries()) {
    const others = (i: number) => rewards.filter((_, k) => k !== i).reduce((sum, r) => sum + r, 0) / 3;
    for (const [i, reward] of rewards.entries()) {
      expect(found[g]?.[i]).toBeCloseTo(reward - others(i), 12);
      expect(found[g]?.[i]).toBeCloseTo((4 / 3) * (reward - rewards.reduce((sum, r) => sum + r, 0) / 4), 12);
    }
  }
});

test("scale batch divides grpo's differences by the deviation of the batch's rewards", () => {
  const found = batchAdvantages(batch, knobs({ advantageScale: "batch", advantageEps: 1e-6 }));
  for (const [g, rewards] of batch.entries()) {
    const own = rewards.reduce((sum, r) => sum + r, 0) / 4;
    for (const [i, reward] of rewards.entries())
      expect(found[g]?.[i]).toBeCloseTo((reward - own) / (deviation + 1e-6), 12);
  }
});

test("reinforce++ has mean 0 and deviation 1 over the batch, and learns from a group whose rewards are all alike", () => {
  const found = batchAdvantages(batch, knobs({ advantage: "reinforce++", advantageScale: "batch", advantageEps: 0 }));
  for (const [g, rewards] of batch.entries())
    for (const [i, reward] of rewards.entries()) expect(found[g]?.[i]).toBeCloseTo((reward - mean) / deviation, 12);
  expect(meanStd(found.flat()).mean).toBeCloseTo(0, 12);
  expect(meanStd(found.flat()).std).toBeCloseTo(1, 12);
  for (const advantage of found[1] ?? []) expect(advantage).toBeCloseTo(-mean / deviation, 12);
});

test("reinforce++-baseline compares with the group and divides by the deviation of all differences", () => {
  const found = batchAdvantages(
    batch,
    knobs({ advantage: "reinforce++-baseline", advantageScale: "batch", advantageEps: 0 }),
  );
  expect(found[1]).toEqual([0, 0, 0, 0]);
  const squares = 4 * 0.25 + (3 * 0.0625 + 0.5625);
  expect(found[0]?.[0]).toBeCloseTo(0.5 / Math.sqrt(squares / 11), 12);
  expect(meanStd(found.flat()).mean).toBeCloseTo(0, 12);
  expect(meanStd(found.flat()).std).toBeCloseTo(1, 12);
});

test("a group's advantages do not depend on the batch unless they are told to", () => {
  for (const advantage of ["grpo", "rloo"] as const)
    for (const advantageScale of ["group", "none"] as const) {
      const config = knobs({ advantage, advantageScale });
      expect(batchAdvantages(batch, config)[2]).toEqual(batchAdvantages([batch[2] as number[]], config)[0]);
    }
});

test("a completion without a reward is in no baseline and has advantage 0: the others are as if it were not there", () => {
  const none = Number.NaN;
  for (const advantage of Object.keys(BASELINES) as Knobs["advantage"][])
    for (const advantageScale of ["group", "batch", "none"] as const) {
      const config = knobs({ advantage, advantageScale });
      const [first, second] = batchAdvantages(
        [
          [1, 4, 2],
          [0.5, 7],
        ],
        config,
      ) as [number[], number[]];
      expect(
        batchAdvantages(
          [
            [1, none, 4, 2, none],
            [none, 0.5, none, 7, none],
          ],
          config,
        ),
      ).toEqual([
        [first[0], 0, first[1], first[2], 0],
        [0, second[0], 0, second[1], 0],
      ]);
      // Nothing to compare the only one with, and a group without any.
      const alone = batchAdvantages(
        [
          [none, 3, none],
          [none, none, none],
        ],
        config,
      );
      expect(alone).toEqual([
        [0, 0, 0],
        [0, 0, 0],
      ]);
    }
});

test("a group without rewards, or with equal ones besides, teaches nothing", () => {
  const groups = [fakeGroup([Number.NaN, Number.NaN]), fakeGroup([1, Number.NaN, 1]), fakeGroup([1, Number.NaN, 0])];
  expect(uniformMetrics(groups)).toEqual({ "reward/zero_std_frac": 2 / 3 });
});
