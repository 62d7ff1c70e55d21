/** The 97.5 % point of the standard normal distribution: a two-sided 95 % interval. */
const Z_95 = 1.959963984540054;

/**
 * Wilson's score interval for a proportion, two-sided 95 %: unlike mean +- 2 sigma it stays inside [0, 1] and is right for few
 * questions and for 0 or all of them correct. Nothing asked: [0, 1].
 *
 * wilsonInterval(8, 10) // [0.490, 0.943]
 */
export function wilsonInterval(correct: number, total: number, z: number = Z_95): [low: number, high: number] {
  if (total === 0) return [0, 1];
  const p = correct / total;
  const shrink = 1 + (z * z) / total;
  const center = (p + (z * z) / (2 * total)) / shrink;
  const half = (z / shrink) * Math.sqrt((p * (1 - p)) / total + (z * z) / (4 * total * total));
  return [Math.max(0, center - half), Math.min(1, center + half)];
}
