/** Which inputs of adapters an update drops: a word for each row of a pass, a function of (seed, step, sample, completion, place). */

import type { Config } from "../config/schema.ts";
import type { Packed } from "../model/packed.ts";
import type { DropoutWords } from "../model/pass.ts";
import { hash64 } from "../random.ts";
import type { VisionInput } from "../types.ts";

/** Whose rows a pack's are: of each of its groups the sample, and the places of the completions in their group. */
export interface PackMembers {
  sampleIds: readonly string[];
  completionIndices: readonly (readonly number[])[];
}

/**
 * For PassOptions.dropout; undefined where nothing is dropped. A prompt's rows have the same words in every company, and whether it is computed once a
 * group or once a completion. All updates from one batch drop the same: ratios between them are those of weights, not of masks.
 */
export function dropoutWords(
  { lora, seed }: Pick<Config, "lora" | "seed">,
  step: number,
  packed: Packed,
  { sampleIds, completionIndices }: PackMembers,
): DropoutWords | undefined {
  if (lora === undefined || lora.dropout === 0) return undefined;
  const key = (group: number, ...more: (string | number)[]) =>
    hash64(seed, "lora dropout", step, sampleIds[group] as string, ...more)[0];
  const { groups, promptLengths, completionLengths } = packed;
  const text = [
    ...promptLengths.map((length, i) => rows(length, key(i, "prompt"))),
    ...completionLengths.flatMap((lengths, i) =>
      lengths.map((length, j) => rows(length, key(i, "completion", completionIndices[i]?.[j] as number))),
    ),
  ];
  const media = (kind: "images" | "videos") =>
    groups.flatMap(({ prompt }, i) => prompt[kind].map((input, j) => rows(patches(input), key(i, kind, j))));
  return { text: joined(text), vision: joined([...media("images"), ...media("videos")]) };
}

function patches({ grid: [t, h, w] }: VisionInput): number {
  return t * h * w;
}

/** One word a row; model/lora.ts mixes them with the adapter and the column. */
function rows(count: number, key: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => key ^ Math.imul(i + 1, 0x85ebca6b));
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const part of parts) {
    all.set(part, end);
    end += part.length;
  }
  return all;
}
