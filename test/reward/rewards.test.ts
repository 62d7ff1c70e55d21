import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { ConfigError } from "../../src/errors.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { meanStd, rewardMetrics } from "../../src/reward/statistics.ts";
import { groupOf } from "./helpers.ts";

const folder = mkdtempSync(join(tmpdir(), "grove-rewards-"));
afterAll(() => rmSync(folder, { recursive: true }));

const right = "<think>a</think><answer>A</answer>";
const bare = "<answer>A</answer>";
const wrong = "<think>a</think><answer>B</answer>";

test("accuracy alone fills rewards and breakdown of every group", async () => {
  const groups = [groupOf([right, wrong]), groupOf([wrong, bare, "?"], { solution: "<answer>B.</answer>" })];
  await createRewards([{ name: "accuracy", weight: 1, timeoutS: 1 }]).score(groups);
  expect(groups[0]?.rewards).toEqual([1, 0]);
  expect(groups[1]?.rewards).toEqual([1, 0, 0]);
  expect(groups[1]?.rewardBreakdown).toEqual({ accuracy: [1, 0, 0] });
});

test("the reward is the weighted sum; the breakdown is not weighted", async () => {
  const group = groupOf([right, bare, wrong, "nothing"]);
  const rewards = createRewards([
    { name: "accuracy", weight: 2, timeoutS: 1 },
    { name: "format", weight: -0.5, timeoutS: 1 },
  ]);
  await rewards.score([group]);
  expect(group.rewards).toEqual([1.5, 2, -0.5, 0]);
  expect(group.rewardBreakdown).toEqual({ accuracy: [1, 1, 0, 0], format: [1, 0, 1, 0] });
});

test("a field of other records has its column in a batch whose records all lack it", async () => {
  const path = join(folder, "lacking.mjs");
  writeFileSync(path, "export default ({ kind }) => kind.map((k) => (k === undefined ? 1 : 0));");
  const rewards = createRewards([{ name: "lacking", path, timeoutS: 20 }]);
  const group = groupOf([right, wrong], { fields: { other: 1 } });
  await rewards.score([group], undefined, ["kind", "other"]);
  await rewards.close();
  expect(group.rewards).toEqual([1, 1]);
});

test("null counts 0 in the sum, is NaN in the breakdown and stays out of the statistics", async () => {
  const path = join(folder, "partly.mjs");
  writeFileSync(path, "export default ({ kind }) => kind.map((k) => (k === 'count' ? 3 : null));");
  const groups = [
    groupOf([right, wrong], { id: "a", fields: { kind: "count" } }),
    groupOf([right, wrong], { id: "b", fields: { kind: "other" } }),
  ];
  const rewards = createRewards([
    { name: "accuracy", weight: 1, timeoutS: 1 },
    { name: "partly", path, weight: 10, timeoutS: 20 },
  ]);
  await rewards.score(groups);
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([
    [31, 30],
    [1, 0],
  ]);
  expect(groups[1]?.rewardBreakdown.partly).toEqual([Number.NaN, Number.NaN]);
  const metrics = rewardMetrics(groups);
  expect(metrics["reward/partly"]).toBe(3);
  expect(metrics["reward/partly_std"]).toBe(0);
  expect(metrics["reward/accuracy"]).toBe(0.5);
  expect(metrics["reward/mean"]).toBe(15.5);
  expect(metrics["reward/std"]).toBeCloseTo(Math.SQRT1_2, 12); // sqrt(1/2) inside each group
});

test("a completion that no weighted function applies to has no reward and counts in no mean", async () => {
  const path = join(folder, "none.mjs");
  writeFileSync(
    path,
    "export default ({ kind }) => kind.map((k, i) => (k === 'none' || (k === 'some' && i === 0) ? null : i));",
  );
  const groups = ["some", "none"].map((kind) => groupOf([right, wrong, bare], { id: kind, fields: { kind } }));
  const rewards = createRewards([
    { name: "partly", path, weight: 2 },
    { name: "accuracy", weight: 0 }, // logged only
  ]);
  await rewards.score(groups);
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([
    [Number.NaN, 2, 4],
    [Number.NaN, Number.NaN, Number.NaN],
  ]);
  expect(groups[1]?.rewardBreakdown.accuracy).toEqual([1, 0, 1]);
  const metrics = rewardMetrics(groups, ["partly"]);
  expect(metrics).toMatchObject({
    "reward/mean": 3,
    "reward/partly": 1.5,
    "reward/partly/not_applicable": 4,
    "reward/partly/errors": 0,
    "reward/accuracy": 4 / 6,
  });
  expect(metrics["reward/std"]).toBeCloseTo(Math.SQRT2, 12); // of the one group that has rewards
  const nothing = rewardMetrics([groups[1] as (typeof groups)[number]], ["partly"]);
  expect(Object.keys(nothing).sort()).toEqual(
    ["accuracy", "accuracy_std", "partly/errors", "partly/not_applicable"].map((name) => `reward/${name}`),
  );
});

test("a step without questions is scored too", async () => {
  await expect(createRewards([{ name: "accuracy", weight: 1, timeoutS: 1 }]).score([])).resolves.toBeUndefined();
});

test.each([
  [[{ name: "acuracy", weight: 1, timeoutS: 1 }], /"acuracy" is not built in \(accuracy, format, math, consistency\)/],
  [[{ name: "toString", weight: 1, timeoutS: 1 }], /"toString" is not built in/],
  [[{ name: "mean", weight: 1, timeoutS: 1 }], /name of a metric/],
  [[{ name: "accuracy" }, { name: "accuracy_std", path: "/nowhere" }], /"accuracy_std" is the name of a metric/],
  [[{ name: "penalty_kl", path: "/nowhere" }], /"penalty_kl" is the name of a metric/],
  [[{ name: "mine", path: "/nowhere/mine.ts", weight: 1, timeoutS: 1 }], /no module \/nowhere\/mine.ts/],
  [
    [
      { name: "format", weight: 1, timeoutS: 1 },
      { name: "format", weight: 2, timeoutS: 1 },
    ],
    /"format" is used twice/,
  ],
])("refuses %j", (configs, message) => {
  expect(() => createRewards(configs)).toThrow(ConfigError);
  expect(() => createRewards(configs)).toThrow(message);
});

test("mean and standard deviation of few values", () => {
  expect(meanStd([1, 2, 3, Number.NaN])).toEqual({ mean: 2, std: 1, count: 3 });
  expect(meanStd([3, 5]).std).toBeCloseTo(Math.SQRT2, 12);
  expect(meanStd([4])).toEqual({ mean: 4, std: 0, count: 1 });
  expect(meanStd([]).mean).toBeNaN();
});

test("a rank that has no question asks no function", async () => {
  const path = join(folder, "first.mjs");
  writeFileSync(path, "export default ({ completions: [first, ...more] }) => [first.length, ...more.map(() => 0)];");
  const rewards = createRewards([{ name: "first", path, weight: 1, timeoutS: 5 }]);
  await rewards.score([]);
  await rewards.close();
});
