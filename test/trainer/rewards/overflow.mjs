/** Finite numbers whose mean is not: what a reward module can do to the arithmetic behind it. */
export default function overflow({ completions }) {
  return completions.map((_, i) => (i % 2 === 0 ? Number.MAX_VALUE : Number.MAX_VALUE / 2));
}
