/** What becomes of completions that a function of the user's own fails on, and of the thread it failed in. */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { RewardError } from "../../src/errors.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { rewardMetrics } from "../../src/reward/statistics.ts";
import { groupOf } from "./helpers.ts";

const folder = mkdtempSync(join(tmpdir(), "grove-failures-"));
afterAll(() => rmSync(folder, { recursive: true }));
let modules = 0;

function moduleOf(source: string): string {
  const path = join(folder, `reward-${modules++}.mjs`);
  writeFileSync(path, source);
  return path;
}

type Options = Omit<Parameters<typeof createRewards>[0][number], "name" | "path">;

const rewardsOf = (source: string, options: Options = {}) =>
  createRewards([{ name: "mine", path: moduleOf(source), ...options }]);

test.each([
  ["zero", 0],
  ["skip", Number.NaN],
] as const)("onError %s stands in for the values that cannot be used, and for those alone", async (onError, value) => {
  const groups = [groupOf(["a", "b"], { id: "s1" }), groupOf(["c", "d", "e"], { id: "s2" })];
  const rewards = rewardsOf("export default () => [1, NaN, '2', null, 5];", { onError });
  await rewards.score(groups);
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([
    [1, value],
    [value, Number.NaN, 5],
  ]);
  expect(groups.map((group) => group.rewardNotes)).toEqual([{ errors: { mine: 1 } }, { errors: { mine: 1 } }]);
  const metrics = rewardMetrics(groups, ["mine"]);
  expect(metrics["reward/mine/errors"]).toBe(2);
  expect(metrics["reward/mine/not_applicable"]).toBe(onError === "zero" ? 1 : 3);
  expect(metrics["reward/mine"]).toBe(onError === "zero" ? 6 / 4 : 3);
  expect(metrics["reward/mean"]).toBe(metrics["reward/mine"]);
});

test.each([
  ["throws", 20, "throw new Error('no');"],
  ["spins", 2, "for (;;);"],
  ["never resolves", 2, "return new Promise(() => {});"],
  ["exits", 20, "process.exit(1);"],
  ["fills its heap", 20, "for (const all = [];;) all.push(new Array(1e4).fill({}));"],
  ["returns too few", 20, "return [1];"],
])("a function that %s counts as configured, and the next call is answered", async (_how, timeoutS, body) => {
  const source = `export default async ({ fail }) => { if (fail[0]) { ${body} } return fail.map(() => 3); };`;
  const rewards = rewardsOf(source, { onError: "zero", timeoutS, memoryMib: 64 });
  const [bad, good] = [true, false].map((fail) => groupOf(["a", "b"], { fields: { fail } })) as [
    ReturnType<typeof groupOf>,
    ReturnType<typeof groupOf>,
  ];
  await rewards.score([bad]);
  await rewards.score([good]);
  await rewards.close();
  expect(bad.rewards).toEqual([0, 0]);
  expect(bad.rewardNotes).toEqual({ errors: { mine: 2 } });
  expect(good.rewards).toEqual([3, 3]);
  expect(good.rewardNotes).toBeUndefined();
});

test("a full heap ends the thread alone, and names the knob", async () => {
  const rewards = rewardsOf("export default () => { for (const all = [];;) all.push(new Array(1e4).fill({})); };", {
    memoryMib: 32,
  });
  await expect(rewards.score([groupOf(["a"])])).rejects.toThrow(/its heap is full: 32 MiB, the memoryMib/);
  await rewards.close();
});

test("other functions' values count where one is left out", async () => {
  const rewards = createRewards([
    { name: "accuracy" },
    { name: "mine", path: moduleOf("export default () => { throw new Error('no'); };"), weight: 5, onError: "skip" },
  ]);
  const group = groupOf(["<answer>A</answer>", "?"]);
  await rewards.score([group]);
  await rewards.close();
  expect(group.rewards).toEqual([1, 0]);
  expect(group.rewardBreakdown).toEqual({ accuracy: [1, 0], mine: [Number.NaN, Number.NaN] });
});

test("a function with a call for each completion: they run at the same time, and one that throws fails alone", async () => {
  const source = `
    let inside = 0;
    let most = 0;
    export default async ({ prompt, completion, completionIds, length, goldAnswer, id, finish, recordPlace, domain }, { logExtra, logMetric }) => {
      most = Math.max(most, ++inside);
      await new Promise((done) => setTimeout(done, 40 / length)); // the longest is done first
      inside--;
      logExtra("said", completion + completionIds.length + goldAnswer + id + finish + recordPlace.line + domain + prompt[0].role);
      logMetric("length", length);
      if (completion === "bb") throw new Error("not this one");
      return completion === "a" ? null : most;
    };`;
  const group = () => groupOf(["a", "bb", "ccc"], { id: "s1", fields: { domain: "D" } });
  const lenient = rewardsOf(source, { call: "completion", onError: "skip" });
  const scored = group();
  await lenient.score([scored]);
  await lenient.close();
  expect(scored.rewardBreakdown.mine).toEqual([Number.NaN, Number.NaN, 3]);
  expect(scored.rewardNotes).toEqual({
    errors: { mine: 1 },
    metrics: { "mine/length": 2 },
    columns: { "mine/said": ["a1A.s1stop1Duser", "bb2A.s1stop1Duser", "ccc3A.s1stop1Duser"] },
  });
  const strict = rewardsOf(source, { call: "completion" });
  const failure = strict.score([group()]);
  await expect(failure).rejects.toThrow(RewardError);
  await expect(failure).rejects.toThrow(/failed on completion 1 \(sample s1\): Error: not this one/);
  await strict.close();
});

test("a function is told how far the run is, and what it logs is noted for each group", async () => {
  const source = `export default ({ completions, goldAnswer, completionMessages }, { step, steps, epoch, epochs, logMetric, logExtra }) => {
    logMetric("progress", step / steps);
    logExtra("gold", goldAnswer);
    logExtra("chat", completionMessages);
    logExtra("short", [1]);
    return completions.map(() => epoch + epochs);
  };`;
  const rewards = rewardsOf(source);
  const groups = [groupOf(["a", "b"]), groupOf(["c"], { solution: "<answer> B </answer>" })];
  await rewards.score(groups, { step: 3, steps: 12, epoch: 0.5, epochs: 2 });
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([[2.5, 2.5], [2.5]]);
  const chat = (content: string) => [{ role: "assistant", content }];
  expect(groups.map((group) => group.rewardNotes)).toEqual([
    { metrics: { "mine/progress": 0.25 }, columns: { "mine/gold": ["A.", "A."], "mine/chat": [chat("a"), chat("b")] } },
    { metrics: { "mine/progress": 0.25 }, columns: { "mine/gold": ["B"], "mine/chat": [chat("c")] } },
  ]);
  expect(rewardMetrics(groups)["reward/mine/progress"]).toBe(0.25);
});

test("logged numbers are means over completions; groups of other calls count by their size", () => {
  const groups = [groupOf(["a", "b", "c"]), groupOf(["d"])].map((group, i) => ({
    ...group,
    rewards: group.completions.map(() => 0),
    rewardNotes: { metrics: { "mine/x": i } },
  }));
  expect(rewardMetrics(groups)["reward/mine/x"]).toBe(0.25);
});

test("start loads every function, and says which cannot be", async () => {
  const fine = rewardsOf("export default () => [1];");
  await fine.start();
  await fine.start();
  const group = groupOf(["a"]);
  await fine.score([group]);
  await fine.close();
  expect(group.rewards).toEqual([1]);
  const slow = rewardsOf("await new Promise(() => setInterval(() => {}, 1000)); export default () => [1];", {
    startTimeoutS: 1,
  });
  await expect(slow.start()).rejects.toThrow(/it was not loaded within 1 s, the startTimeoutS/);
  await slow.close();
  const broken = rewardsOf("export default 7;");
  await expect(broken.start()).rejects.toThrow(/could not be loaded: .*default export is not a function/s);
  await broken.close();
});

test("closing ends a call that is under way", async () => {
  const rewards = rewardsOf("export default () => new Promise(() => {});");
  await rewards.start();
  const failure = expect(rewards.score([groupOf(["a"])])).rejects.toThrow(/closed before it replied/);
  await new Promise(setImmediate); // the call is with the thread
  await rewards.close();
  await failure;
});
