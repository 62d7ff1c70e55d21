/** Parts of a level: the fields of its records that split it, and the counts of each part. */

import type { Sample } from "../types.ts";

/** How many questions were answered right. */
export interface Tally {
  correct: number;
  n: number;
}

/** A tally and, by the field that splits it further, the tallies of its parts: `domain` -> `Hobbies` -> ... `scenario` -> `baking`. */
export interface PartTally extends Tally {
  parts: Parts;
}

export type Parts = Record<string, Record<string, PartTally>>;

/** Field and value of each part that a question belongs to, the outermost first: [["domain", "Hobbies"], ["scenario", "baking"]]. */
export type PartPath = [field: string, name: string][];

/** LongVideoBench's duration groups (upper bounds, seconds) as its paper writes them. */
const DURATIONS: Readonly<Record<string, string>> = {
  15: "(8,15]",
  60: "(15,60]",
  600: "(180,600]",
  3600: "(900,3600]",
};

/** Where a question belongs: its domain and within that its scenario (SEED-Bench-R1 L3), and its duration group (LongVideoBench). */
export function partPaths({ fields }: Pick<Sample, "fields">): PartPath[] {
  const place: PartPath = [];
  for (const field of ["domain", "scenario"]) {
    const name = fields[field];
    if (typeof name === "string" && name !== "") place.push([field, name]);
  }
  const paths = place.length === 0 ? [] : [place];
  const duration = fields.duration_group;
  if (typeof duration === "number" || typeof duration === "string")
    paths.push([["duration", Object.hasOwn(DURATIONS, duration) ? (DURATIONS[duration] as string) : String(duration)]]);
  return paths;
}

/** Lists every part in the order of a table: outer parts before their inner ones, durations by length, the rest by name. */
export function* walkParts(parts: Parts, depth = 1): Generator<{ path: PartPath; depth: number; tally: PartTally }> {
  for (const [field, named] of Object.entries(parts)) {
    for (const name of Object.keys(named).sort(byDurationThenName)) {
      const tally = named[name] as PartTally;
      yield { path: [[field, name]], depth, tally };
      for (const inner of walkParts(tally.parts, depth + 1)) {
        yield { ...inner, path: [[field, name], ...inner.path] };
      }
    }
  }
}

/** The tally at a path below `parts`, made where it is missing. */
export function partAt(parts: Parts, path: PartPath): PartTally {
  let at: Parts = parts;
  let tally: PartTally | undefined;
  for (const [field, name] of path) {
    at[field] ??= {};
    // A record may name a part "constructor".
    if (!Object.hasOwn(at[field], name)) at[field][name] = { correct: 0, n: 0, parts: {} };
    tally = at[field][name] as PartTally;
    at = tally.parts;
  }
  return tally as PartTally;
}

function byDurationThenName(a: string, b: string): number {
  const order = Object.values(DURATIONS);
  return order.indexOf(a) - order.indexOf(b) || (a < b ? -1 : a > b ? 1 : 0);
}
