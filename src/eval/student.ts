/** Means of a few repeats: Student's t intervals, and the paired t test. */

/** Mean with its two-sided 95 % interval; the interval is null with fewer than two values. */
export function meanInterval(values: readonly number[]): {
  mean: number;
  interval: [low: number, high: number] | null;
} {
  const n = values.length;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  if (n < 2) return { mean, interval: null };
  const half = tQuantile(0.975, n - 1) * standardError(values, mean);
  return { mean, interval: [mean - half, mean + half] };
}

/**
 * b - a of pairs: mean, 95 % interval, and p of the two-sided paired t test. Interval and p are null with fewer than two pairs, p also where
 * all differences are the same.
 */
export function pairedMeans(
  a: readonly number[],
  b: readonly number[],
): { difference: number; interval: [low: number, high: number] | null; p: number | null } {
  const differences = a.map((value, i) => (b[i] as number) - value);
  const { mean, interval } = meanInterval(differences);
  const error = standardError(differences, mean);
  const differ = error > 1e-12 * Math.max(...a.map(Math.abs), ...b.map(Math.abs)); // by more than rounding
  const p = interval === null || !differ ? null : 2 * tTail(Math.abs(mean / error), differences.length - 1);
  return { difference: mean, interval, p };
}

function standardError(values: readonly number[], mean: number): number {
  const n = values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (n - 1) / n);
}

/** P(T > t) for t >= 0 and so many degrees of freedom: half the incomplete beta function at df / (df + t^2). */
export function tTail(t: number, df: number): number {
  return 0.5 * incompleteBeta(df / (df + t * t), df / 2, 0.5);
}

/** The t below which a share `p` > 0.5 lies, by bisection. */
export function tQuantile(p: number, df: number): number {
  let [low, high] = [0, 1e3];
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2;
    if (1 - tTail(middle, df) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** The regularised incomplete beta function by its continued fraction (Abramowitz and Stegun 26.5.8, modified Lentz). */
function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const tiny = 1e-300;
  const safe = (value: number) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / safe(1 - ((a + b) * x) / (a + 1));
  let fraction = d;
  for (let m = 1; m < 300; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    for (const term of [even, odd]) {
      d = 1 / safe(1 + term * d);
      c = safe(1 + term / c);
      fraction *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return (Math.exp(a * Math.log(x) + b * Math.log(1 - x) - logBeta(a, b)) * fraction) / a;
}

function logBeta(a: number, b: number): number {
  return logGamma(a) + logGamma(b) - logGamma(a + b);
}

/** log Gamma(z) for z > 0: Stirling's series, after raising z above 10. */
function logGamma(z: number): number {
  if (z < 10) return logGamma(z + 1) - Math.log(z);
  const square = 1 / (z * z);
  const series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / z;
  return (z - 0.5) * Math.log(z) - z + 0.5 * Math.log(2 * Math.PI) + series;
}
