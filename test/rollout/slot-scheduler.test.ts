import fc from "fast-check";
import { expect, test } from "vitest";
import { InvariantError } from "../../src/errors.ts";
import { SlotScheduler, type SlotSchedulerOptions, TURN } from "../../src/rollout/slot-scheduler.ts";

const options = (more: Partial<SlotSchedulerOptions> = {}): SlotSchedulerOptions => ({
  promptLengths: [5, 9, 7],
  groupSize: 2,
  rows: 3,
  slots: 3,
  seats: 3,
  arenaTokens: 21,
  maxNewTokens: 4,
  ...more,
});
const flags = (slots: number, ...done: number[]) => Array.from({ length: slots }, (_, s) => (done.includes(s) ? 1 : 0));

test("longest prompts first, a group may be admitted in part", () => {
  const scheduler = new SlotScheduler(options());
  expect(scheduler.admit()).toEqual({
    prompts: [
      { question: 1, seat: 0, start: 0 },
      { question: 2, seat: 1, start: 9 },
    ],
    placements: [
      { slot: 0, seat: 0, question: 1, completion: 0 },
      { slot: 1, seat: 0, question: 1, completion: 1 },
      { slot: 2, seat: 1, question: 2, completion: 0 },
    ],
  });
  expect(scheduler.admit()).toEqual({ prompts: [], placements: [] });
  scheduler.observe(flags(3, 1), scheduler.clock);
  expect(scheduler.retire()).toEqual([{ slot: 1, seat: 0, question: 1, completion: 1 }]);
  expect(scheduler.admit().placements).toEqual([{ slot: 1, seat: 1, question: 2, completion: 1 }]);
});

test("a place is given back with the last completion, and the next prompt takes the lowest", () => {
  const scheduler = new SlotScheduler(options({ groupSize: 1, slots: 2, seats: 2, arenaTokens: 16 }));
  scheduler.admit(); // 9 and 7 tokens
  scheduler.observe(flags(2, 0), scheduler.clock);
  scheduler.retire();
  expect(scheduler.admit().prompts).toEqual([{ question: 0, seat: 0, start: 0 }]);
});

test("neither seats nor room are exceeded", () => {
  expect(new SlotScheduler(options({ seats: 1 })).admit().prompts).toHaveLength(1);
  expect(new SlotScheduler(options({ arenaTokens: 15 })).admit().prompts).toHaveLength(1);
  expect(() => new SlotScheduler(options({ arenaTokens: 8 }))).toThrow(InvariantError);
});

test("a completion ends at the limit without being told", () => {
  const scheduler = new SlotScheduler(options());
  scheduler.admit();
  expect(scheduler.arrange()).toHaveLength(3);
  for (const left of [3, 3, 0]) {
    scheduler.advance();
    expect(scheduler.arrange()).toHaveLength(left);
  }
  expect(scheduler.retire()).toHaveLength(3);
  const single = new SlotScheduler(options({ maxNewTokens: 1 }));
  single.admit();
  expect(single.arrange()).toEqual([]);
});

test("rows go to those with the fewest tokens, in turns", () => {
  const scheduler = new SlotScheduler(options({ rows: 2, slots: 6, groupSize: 1, maxNewTokens: 100 }));
  scheduler.admit(); // three completions in slots 0 to 2
  const slots = () => scheduler.arrange().map(({ slot }) => slot);
  const steps = (count: number) => {
    const arranged = scheduler.arrange();
    for (let i = 0; i < count; i++) {
      expect(scheduler.arrange()).toBe(arranged); // nothing changes within a turn
      scheduler.advance();
    }
  };
  expect(slots()).toEqual([0, 1]);
  steps(TURN - 1); // with the first, a turn's tokens each
  expect(slots()).toEqual([0, 2]); // the third has one, and of two alike the one that came first goes on
  steps(TURN - 1); // almost two turns, one and one: the turn of the first goes on, and of the others the one that has a row keeps it
  expect(slots()).toEqual([0, 2]);
  steps(1);
  expect(slots()).toEqual([1, 2]);
  scheduler.observe(flags(6, 1), scheduler.clock);
  expect(slots()).toEqual([0, 2]);
});

test("flags that were read before a completion came are not about it", () => {
  const scheduler = new SlotScheduler(options());
  scheduler.admit();
  scheduler.advance();
  const early = scheduler.clock;
  scheduler.observe(flags(3, 0), early);
  scheduler.retire();
  scheduler.admit();
  scheduler.observe(flags(3, 0), early);
  expect(scheduler.retire()).toEqual([]);
  scheduler.observe(flags(3, 0), scheduler.clock);
  expect(scheduler.retire()).toHaveLength(1);
});

test("every completion gets a slot once, whatever the sizes and the lengths", () => {
  const sizes = fc.record({
    promptLengths: fc.array(fc.integer({ min: 1, max: 20 }), { maxLength: 12 }),
    groupSize: fc.integer({ min: 1, max: 6 }),
    rows: fc.integer({ min: 1, max: 6 }),
    slots: fc.integer({ min: 1, max: 10 }),
    seats: fc.integer({ min: 1, max: 10 }),
    arenaTokens: fc.integer({ min: 20, max: 60 }),
    maxNewTokens: fc.integer({ min: 1, max: 80 }),
  });
  fc.assert(
    fc.property(sizes, fc.integer(), fc.integer({ min: 0, max: 3 }), (some, seed, lag) => {
      const scheduler = new SlotScheduler(some);
      const lengthOf = (question: number, completion: number) =>
        1 + Math.abs((seed ^ (question * 7919 + completion * 104729)) % some.maxNewTokens);
      const left = Array<number>(some.slots).fill(0); // the device: tokens still to come, 0 for none
      const looks: { done: number[]; at: number }[] = [];
      const seen = new Set<string>();
      const inArena = new Map<number, { start: number; question: number }>(); // seat ->
      let retired = 0;
      for (let turn = 0; !scheduler.finished; turn++) {
        expect(turn).toBeLessThan(10_000);
        const { prompts, placements } = scheduler.admit();
        for (const prompt of prompts) inArena.set(prompt.seat, prompt);
        for (const { slot, seat, question, completion } of placements) {
          expect(inArena.get(seat)?.question).toBe(question);
          expect(seen.has(`${question} ${completion}`)).toBe(false);
          seen.add(`${question} ${completion}`);
          left[slot] = lengthOf(question, completion) - 1;
        }
        const arranged = scheduler.arrange();
        expect(arranged.length).toBeLessThanOrEqual(some.rows);
        expect(new Set(arranged.map(({ slot }) => slot)).size).toBe(arranged.length);
        if (arranged.length > 0) {
          for (const { slot } of arranged) left[slot] = Math.max(0, (left[slot] as number) - 1);
          scheduler.advance();
        }
        looks.push({ done: left.map((tokens) => (tokens === 0 ? 1 : 0)), at: scheduler.clock });
        const look = looks[looks.length - 1 - lag];
        if (look !== undefined) scheduler.observe(look.done, look.at);
        for (const { slot } of scheduler.retire()) {
          expect(left[slot]).toBe(0); // nobody leaves early
          retired++;
        }
      }
      expect(retired).toBe(some.promptLengths.length * some.groupSize);
      expect(seen.size).toBe(retired);
    }),
  );
});
