import fc from "fast-check";
import { expect, test } from "vitest";
import { InvariantError } from "../../src/errors.ts";
import { TokenArena } from "../../src/rollout/token-arena.ts";

test("the lowest gap that is long enough is taken, and gaps that touch become one", () => {
  const arena = new TokenArena(10);
  expect([arena.take(3), arena.take(4), arena.take(3)]).toEqual([0, 3, 7]);
  expect(arena.take(1)).toBeNull();
  arena.release(0);
  arena.release(7);
  expect(arena.take(4)).toBeNull(); // six tokens are free, but not in one piece
  expect(arena.take(2)).toBe(0);
  arena.release(3);
  expect(arena.take(8)).toBe(2);
  expect(arena.used).toBe(10);
});

test("a range is given back once, and by its start", () => {
  const arena = new TokenArena(4);
  arena.take(2);
  expect(() => arena.release(1)).toThrow(InvariantError);
  arena.release(0);
  expect(() => arena.release(0)).toThrow(InvariantError);
  expect(() => arena.take(0)).toThrow(InvariantError);
  expect(new TokenArena(0).take(1)).toBeNull();
});

test("whatever is taken and given back: ranges never overlap, and in the end the arena is whole", () => {
  const actions = fc.array(fc.record({ length: fc.integer({ min: 1, max: 9 }), release: fc.nat(7) }), {
    maxLength: 60,
  });
  fc.assert(
    fc.property(actions, (list) => {
      const arena = new TokenArena(24);
      const held: { start: number; length: number }[] = [];
      for (const { length, release } of list) {
        const start = arena.take(length);
        if (start !== null) held.push({ start, length });
        const cells = held.flatMap((range) => Array.from({ length: range.length }, (_, i) => range.start + i));
        expect(new Set(cells).size).toBe(cells.length);
        expect(Math.max(-1, ...cells)).toBeLessThan(24);
        expect(arena.used).toBe(cells.length);
        const given = held[release];
        if (given !== undefined) {
          arena.release(given.start);
          held.splice(release, 1);
        }
      }
      for (const { start } of held) arena.release(start);
      expect(arena.take(24)).toBe(0);
    }),
  );
});
