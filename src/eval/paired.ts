/** Two models on the same questions: what their answers have in common, and how sure a difference is. */

import { wilsonInterval } from "./intervals.ts";

/** Questions by which of two models answered them right. */
export interface PairedCounts {
  both: number;
  onlyA: number;
  onlyB: number;
  neither: number;
}

/**
 * 95 % interval of accuracy(B) - accuracy(A) on the same questions: Newcombe's hybrid of two Wilson intervals with the correlation of the
 * pairs taken off (Statistics in Medicine 17:2635, 1998, method 10). Unlike Wald's interval on the discordant pairs it stays inside
 * [-1, 1] and does not shrink to a point where the models never disagree. Nothing asked: [-1, 1].
 */
export function pairedDifference({ both, onlyA, onlyB, neither }: PairedCounts): {
  difference: number;
  low: number;
  high: number;
} {
  const n = both + onlyA + onlyB + neither;
  if (n === 0) return { difference: 0, low: -1, high: 1 };
  const a = (both + onlyA) / n;
  const b = (both + onlyB) / n;
  const [lowA, highA] = wilsonInterval(both + onlyA, n);
  const [lowB, highB] = wilsonInterval(both + onlyB, n);
  const phi = correlation({ both, onlyA, onlyB, neither });
  const side = (x: number, y: number) => Math.sqrt(Math.max(0, x * x - 2 * phi * x * y + y * y));
  const difference = b - a;
  return {
    difference,
    low: Math.max(-1, difference - side(b - lowB, highA - a)),
    high: Math.min(1, difference + side(highB - b, a - lowA)),
  };
}

/** Correlation of the two models' being right, with Newcombe's continuity correction; 0 where a margin is empty. */
function correlation({ both, onlyA, onlyB, neither }: PairedCounts): number {
  const n = both + onlyA + onlyB + neither;
  const margins = (both + onlyA) * (onlyB + neither) * (both + onlyB) * (onlyA + neither);
  if (margins === 0) return 0;
  const cross = both * neither - onlyA * onlyB;
  return (cross > 0 ? Math.max(cross - n / 2, 0) : cross) / Math.sqrt(margins);
}

/**
 * Exact two-sided p-value of McNemar's test: how likely at least so uneven a split of the questions that one model alone got right is
 * when each goes to either with probability 1/2. No such question: 1.
 */
export function mcnemarExact(onlyA: number, onlyB: number): number {
  const n = onlyA + onlyB;
  const fewer = Math.min(onlyA, onlyB);
  if (n === 0) return 1;
  // Terms C(n, k) / 2^n from the largest down, relative to it, so that thousands of questions neither overflow nor vanish.
  let term = 1;
  let sum = 1;
  for (let k = fewer; k > 0; k--) {
    term *= k / (n - k + 1);
    sum += term;
  }
  let logLargest = -n * Math.LN2;
  for (let k = 1; k <= fewer; k++) logLargest += Math.log((n - fewer + k) / k);
  return Math.min(1, 2 * Math.exp(logLargest) * sum);
}
