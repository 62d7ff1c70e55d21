/** The model of ranks that take over: alone it is the trainer's own scheduler; taking over loses nothing of what is to be sampled and wins where it must. */

import { execFileSync } from "node:child_process";
import path from "node:path";
import { expect, test } from "vitest";
import { type RolloutCase, simulate, type TakeOver } from "../../bench/lib/takeover-model.ts";
import { costsOf, gains, MEASURED } from "../../bench/lib/takeover-table.ts";
import { randomInt } from "../../src/random.ts";
import { SlotScheduler } from "../../src/rollout/slot-scheduler.ts";

const FREE = { stepS: 1, prefillS: 0, sendS: { patches: 0, prompt: 0, token: 0 } };
const questions = (count: number, group: number, most: number, ...keys: (string | number)[]) =>
  Array.from({ length: count }, (_, q) => Array.from({ length: group }, (_, i) => 1 + randomInt(most, ...keys, q, i)));

/** Steps of the trainer's scheduler, told at once who has ended. */
function schedulerSteps(lengths: number[][], rows: number, slots: number): number {
  const groupSize = lengths[0]?.length ?? 0;
  const scheduler = new SlotScheduler({
    ...{ promptLengths: lengths.map(() => 1), groupSize, rows, slots, seats: slots, arenaTokens: lengths.length },
    maxNewTokens: 1000,
  });
  const drawn = new Map<number, { left: number }>(); // by slot
  const done = new Uint8Array(slots);
  const look = () => {
    for (let slot = 0; slot < slots; slot++) done[slot] = Number((drawn.get(slot)?.left ?? 1) <= 0);
    scheduler.observe(done, scheduler.clock);
  };
  let steps = 0;
  while (!scheduler.finished) {
    for (const { slot, question, completion } of scheduler.admit().placements)
      drawn.set(slot, { left: (lengths[question]?.[completion] as number) - 1 });
    look();
    const active = scheduler.arrange();
    if (active.length > 0) {
      for (const { slot } of active) (drawn.get(slot) as { left: number }).left--;
      scheduler.advance();
      look();
      steps++;
    }
    scheduler.retire();
  }
  return steps;
}

test("a rank that takes nothing makes the steps of the trainer's scheduler", () => {
  for (let trial = 0; trial < 30; trial++) {
    const rows = 1 + randomInt(7, "rows", trial);
    const slots = rows * (1 + randomInt(4, "slots", trial));
    const lengths = questions(1 + randomInt(9, "count", trial), 1 + randomInt(5, "group", trial), 90, "length", trial);
    const { steps, endS } = simulate({
      ...{ lengths: [lengths], rows, slots, costs: FREE },
      takeOver: "none",
      takes: 0,
    });
    expect(steps).toEqual([schedulerSteps(lengths, rows, slots)]);
    expect(endS).toEqual(steps);
  }
});

const long = questions(6, 2, 1, "same").map((group) => group.map(() => 41));
const short = questions(6, 2, 1, "same").map((group) => group.map(() => 3));
const shared: Omit<RolloutCase, "takeOver"> = { lengths: [long, short], rows: 2, slots: 2, costs: FREE, takes: 99 };
const last = (takeOver: TakeOver, more: Partial<RolloutCase> = {}) =>
  Math.max(...simulate({ ...shared, ...more, takeOver }).endS);

test("with rows to spare here and a queue there, what waits moves and the rollout ends earlier, less what sending takes", () => {
  expect(last("none")).toBe(6 * 40);
  for (const what of ["question", "completion"] as const) {
    const { taken } = simulate({ ...shared, takeOver: what });
    expect(taken).toBeGreaterThan(0);
    expect(last(what)).toBeLessThanOrEqual(4 * 40);
    expect(last(what, { takes: 1 })).toBeGreaterThan(last(what));
    expect(last(what, { costs: { ...FREE, sendS: { patches: 7, prompt: 7, token: 0 } } })).toBeGreaterThan(last(what));
  }
});

test("where all is admitted no question can be taken, and where all has rows no completion", () => {
  expect(simulate({ ...shared, slots: 12, takeOver: "question" }).taken).toBe(0);
  expect(simulate({ ...shared, slots: 12, takeOver: "completion" }).taken).toBeGreaterThan(0);
  expect(simulate({ ...shared, rows: 12, slots: 12, takeOver: "completion" }).taken).toBe(0);
});

test("steps take what was measured at 64 and 128 rows", () => {
  for (const [rows, seconds] of MEASURED.stepS) expect(costsOf(rows, 954).stepS).toBeCloseTo(seconds, 12);
  expect(costsOf(192, 954).stepS).toBeCloseTo(2 * 0.005534 - 0.00429, 12);
});

test("gains lie between nothing and the bound; without a queue there are none", () => {
  const setting = {
    ...{ ranks: 2, questions: 6, group: 4, rows: 8, slotsPerRow: 1, promptTokens: 954, draws: 2 },
    lengths: { mean: 40, sigma: 0.8, cap: 120, alike: 0.5 },
  };
  const { waits, rolloutS, stepS, less } = gains(setting);
  expect(waits).toBe(true);
  expect(stepS).toBeGreaterThan(rolloutS);
  for (const kind of ["question", "completion", "known"] as const) {
    expect(less[kind]).toBeGreaterThanOrEqual(0);
    expect(less[kind]).toBeLessThanOrEqual(less.bound);
  }
  expect(less.question + less.completion).toBeGreaterThan(0);
  expect(gains({ ...setting, rows: 24 })).toMatchObject({ waits: false, less: { question: 0, completion: 0 } });
});

test("the command prints a line for each case", () => {
  const main = path.join(import.meta.dirname, "../../bench/main.ts");
  const options = ["--ranks", "2", "--questions", "2,4", "--rows", "64", "--group", "2", "--mean", "5", "--draws", "1"];
  const said = execFileSync(process.execPath, ["--import", "tsx", main, "takeover", ...options], { encoding: "utf8" });
  expect(said.trim().split("\n")).toHaveLength(4);
  expect(said).toMatch(/^\| 2 \| 4 \| 64 \| [\d.]+ \| [\d.]+ \| nothing waits \|/m);
});
