/** The name among `candidates` that was most likely meant by `name`, or undefined when none is close. */
export function nearest(name: string, candidates: readonly string[]): string | undefined {
  const wanted = simplify(name);
  let best: { candidate: string; distance: number } | undefined;
  for (const candidate of candidates) {
    const distance = editDistance(wanted, simplify(candidate));
    if (best === undefined || distance < best.distance) best = { candidate, distance };
  }
  return best !== undefined && best.distance <= Math.max(1, Math.floor(wanted.length * 0.4))
    ? best.candidate
    : undefined;
}

/** Levenshtein distance, with a swap of two neighbouring letters counted as one edit (optimal string alignment). */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      let distance = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        distance = Math.min(distance, beforeLast[j - 2]! + 1);
      }
      row.push(distance);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length]!;
}

/** snake_case, kebab-case and camelCase spellings of a name are the same name here. */
function simplify(name: string): string {
  return name.replace(/[-_]/g, "").toLowerCase();
}
