/** Views start at multiples of this many elements, so that kernels may load 16 bytes at once from each. */
const ALIGNMENT = 16;

/** Where tensors of these element counts lie in one flat buffer, and how many elements the buffer has. */
export function flatLayout(counts: readonly number[]): { starts: number[]; size: number } {
  let size = 0;
  const starts = counts.map((count) => {
    const start = size;
    size += Math.ceil(count / ALIGNMENT) * ALIGNMENT;
    return start;
  });
  return { starts, size };
}
