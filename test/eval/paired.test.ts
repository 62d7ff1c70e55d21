import { expect, test } from "vitest";
import { mcnemarExact, pairedDifference } from "../../src/eval/paired.ts";

// scipy 1.17 binomtest(min(b, c), b + c, 0.5).pvalue, equal to statsmodels 0.15 mcnemar(table, exact=True).pvalue
test.each([
  [0, 0, 1],
  [0, 5, 0.0625],
  [3, 9, 0.14599609375],
  [12, 2, 0.012939453125],
  [10, 10, 1],
  [101, 121, 0.20213432065995843],
  [37, 5, 4.4337048166198656e-7],
  [150, 75, 6.433102088708883e-7],
  [900, 1100, 8.45708953550393e-6],
  [1, 1999, 0], // 3.5e-599
])("McNemar, %i against %i", (onlyA, onlyB, p) => {
  expect(Math.abs(mcnemarExact(onlyA, onlyB) - p)).toBeLessThanOrEqual(1e-11 * p);
  expect(mcnemarExact(onlyB, onlyA)).toBe(mcnemarExact(onlyA, onlyB));
});

test("McNemar's p-value is the sum of its tail, for every split of 40 questions", () => {
  const binomial = [1n];
  for (let k = 1; k <= 40; k++) binomial.push(((binomial[k - 1] as bigint) * BigInt(41 - k)) / BigInt(k));
  for (let onlyA = 0; onlyA <= 40; onlyA++) {
    const tail = binomial.slice(0, Math.min(onlyA, 40 - onlyA) + 1).reduce((sum, ways) => sum + ways, 0n);
    expect(mcnemarExact(onlyA, 40 - onlyA)).toBeCloseTo(Math.min(1, (2 * Number(tail)) / 2 ** 40), 14);
  }
});

// Newcombe's method 10 for A - B with counts [both, only A, only B, neither]; the formula as R's biostatUZH::confIntPairedProportion has it,
// evaluated in Python. The first is the airway example of Fagerland et al. 2014, who print -0.507 to -0.026.
test.each([
  [1, 1, 7, 12, -0.2857142857142857, -0.506920226686141, -0.02555912416485978],
  [20, 12, 2, 16, 0.2, 0.05615642484174824, 0.32920699540014053],
  [36, 12, 2, 0, 0.19999999999999996, 0.05692958400323869, 0.3404276029749407],
  [53, 16, 8, 9, 0.09302325581395343, -0.020104076887636144, 0.2039158352504531],
  [50, 0, 0, 50, 0, -0.019233693926800913, 0.019233693926800913],
  [0, 54, 0, 0, 1, 0.9060770029959941, 1],
])("interval for %i both, %i and %i alone, %i neither", (both, onlyA, onlyB, neither, difference, low, high) => {
  const swapped = pairedDifference({ both, onlyA: onlyB, onlyB: onlyA, neither }); // B - A of the swapped models is A - B
  expect(swapped.difference).toBeCloseTo(difference, 12);
  expect(swapped.low).toBeCloseTo(low, 12);
  expect(swapped.high).toBeCloseTo(high, 12);
  const plain = pairedDifference({ both, onlyA, onlyB, neither });
  expect([plain.low, plain.high].map((bound) => -bound).sort((x, y) => x - y)).toEqual(
    [swapped.low, swapped.high].map((bound) => expect.closeTo(bound, 12)),
  );
});

test("the interval holds the truth in about 95 of 100 experiments, over all outcomes of 30 questions", () => {
  const shares = { both: 0.35, onlyA: 0.1, onlyB: 0.2, neither: 0.35 };
  const n = 30;
  const logFactorial = [0];
  for (let k = 1; k <= n; k++) logFactorial.push((logFactorial[k - 1] as number) + Math.log(k));
  const term = (k: number, share: number) => k * Math.log(share) - (logFactorial[k] as number);
  let covered = 0;
  for (let both = 0; both <= n; both++)
    for (let onlyA = 0; onlyA <= n - both; onlyA++)
      for (let onlyB = 0; onlyB <= n - both - onlyA; onlyB++) {
        const neither = n - both - onlyA - onlyB;
        const { low, high } = pairedDifference({ both, onlyA, onlyB, neither });
        if (low > 0.1 || high < 0.1) continue;
        const exponent = term(both, shares.both) + term(onlyA, shares.onlyA) + term(onlyB, shares.onlyB);
        covered += Math.exp((logFactorial[n] as number) + exponent + term(neither, shares.neither));
      }
  expect(covered).toBeGreaterThan(0.94);
  expect(covered).toBeLessThan(0.98);
});

test("no question says nothing", () => {
  expect(pairedDifference({ both: 0, onlyA: 0, onlyB: 0, neither: 0 })).toEqual({ difference: 0, low: -1, high: 1 });
});
