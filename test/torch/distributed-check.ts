/** What the case "results" of distributed-rank.ts has to give, at each of its ranks. */

import { expect } from "vitest";

const value = (i: number, rank: number) => Math.sin(i * 12.9898 + rank * 78.233) * 10 ** ((i + rank) % 5);
const range = (n: number) => Array.from({ length: n }, (_, i) => i);

// biome-ignore lint/suspicious/noExplicitAny: JSON of another process
export function expectResults(all: any[]): void {
  const world = all.length;
  const ranks = range(world);
  const sumAt = (i: number) => ranks.reduce((sum, rank) => sum + Math.fround(value(i, rank)), 0);
  for (const [rank, result] of all.entries()) {
    // In float64, rounded once: not what float32 additions would give.
    expect(result.sums).toEqual(range(10).map((i) => Math.fround(sumAt(i))));
    expect(result.halves).toEqual(all[0].halves);
    expect(result.wholes).toEqual([(world * (world - 1)) / 2, world * 2 ** 40 + (world * (world - 1)) / 2]);
    expect(result.mosts).toEqual(range(5).map((i) => Math.max(...ranks.map((of) => Math.fround(value(i, of))))));
    expect(result.owns).toEqual(range(3).map((i) => Math.fround(sumAt(3 * rank + i))));
    expect(result.gathereds).toEqual(range(2 * world).map((i) => Math.fround(value(i, Math.floor(i / 2)))));
    expect(result.tolds).toEqual(range(4).map((i) => Math.fround(value(i, world - 1))));
    expect(result).toMatchObject({ bigRight: true, arrived: world, gone: true });
    expect(result.note).toBe(rank === world - 1 ? "hello" : undefined);
  }
  expect(all.map(({ counted }) => counted).sort()).toEqual(range(world).map((i) => i + 1));
}
