import { expect, test } from "vitest";
import { logNormalLengths } from "../../bench/lib/lengths.ts";

test("log-normal lengths have their mean before the cap, and are a function of the indices", () => {
  const free = logNormalLengths(128, 0.5, 1e9);
  const capped = logNormalLengths(128, 0.5, 256);
  const all = Array.from({ length: 4000 }, (_, i) => [Math.floor(i / 8), i % 8] as const);
  const lengths = all.map(([prompt, item]) => free(prompt, item));
  const mean = lengths.reduce((a, b) => a + b) / lengths.length;
  expect(Math.abs(mean - 128)).toBeLessThan(5);
  expect(Math.max(...lengths)).toBeGreaterThan(300);
  expect(all.map(([prompt, item]) => capped(prompt, item))).toEqual(lengths.map((length) => Math.min(256, length)));
  expect(new Set(lengths).size).toBeGreaterThan(200);
});
