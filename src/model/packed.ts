/**
 * Groups as one row of tokens, each prompt once:
 *   [prompt 1 | ... | prompt N | completions of group 1 | ... | completions of group N]
 * All prompts come first, so that prompts and completions are each one contiguous run of segments for the attention kernels.
 * A completion continues at its prompt's next position on all three axes, as if it stood right behind it.
 */

import { invariant } from "../errors.ts";
import type { Prompt, VisionInput } from "../types.ts";

export interface PackedGroup {
  prompt: Pick<Prompt, "inputIds" | "positions" | "nextPosition" | "images" | "videos">;
  completions: readonly Int32Array[]; // ids, [Lc] each, the stop token included
}

/** T tokens in the layout above, Tc of them in completions. */
export interface Packed {
  groups: readonly PackedGroup[];
  ids: Int32Array; // [T]
  positions: Int32Array; // [3, T], axis-major
  promptLengths: number[]; // [N]
  completionLengths: number[][]; // [N][G]
  promptTokens: number; // rows before the first completion
  targets: Int32Array; // [Tc], the completions' ids in order
  /** Row of the hidden state that predicts each target: the row before it, or the prompt's last row for a completion's first token. [Tc] */
  predictRows: Int32Array;
}

export function packGroups(groups: readonly PackedGroup[]): Packed {
  invariant(groups.length > 0, "a pack needs at least one group");
  const promptLengths = groups.map(({ prompt }) => prompt.inputIds.length);
  const completionLengths = groups.map(({ completions }) => completions.map((ids) => ids.length));
  const promptTokens = promptLengths.reduce((a, b) => a + b, 0);
  const completionTokens = completionLengths.flat().reduce((a, b) => a + b, 0);
  const total = promptTokens + completionTokens;
  const ids = new Int32Array(total);
  const positions = new Int32Array(3 * total);
  const targets = new Int32Array(completionTokens);
  const predictRows = new Int32Array(completionTokens);
  let promptRow = 0;
  let row = promptTokens;
  for (const { prompt, completions } of groups) {
    const length = prompt.inputIds.length;
    invariant(
      length > 0 && prompt.positions.length === 3 * length,
      `a prompt of ${length} ids has ${prompt.positions.length} positions`,
    );
    ids.set(prompt.inputIds, promptRow);
    for (let axis = 0; axis < 3; axis++) {
      positions.set(prompt.positions.subarray(axis * length, (axis + 1) * length), axis * total + promptRow);
    }
    promptRow += length;
    for (const completion of completions) {
      ids.set(completion, row);
      targets.set(completion, row - promptTokens);
      for (let i = 0; i < completion.length; i++, row++) {
        predictRows[row - promptTokens] = i === 0 ? promptRow - 1 : row - 1;
        for (let axis = 0; axis < 3; axis++) positions[axis * total + row] = prompt.nextPosition + i;
      }
    }
  }
  return { groups, ids, positions, promptLengths, completionLengths, promptTokens, targets, predictRows };
}

/** The media of several prompts in the order that embed() wants their features: all images, then all videos. */
export function mediaOf(prompts: readonly Pick<Prompt, "images" | "videos">[]): VisionInput[] {
  return [...prompts.flatMap((prompt) => prompt.images), ...prompts.flatMap((prompt) => prompt.videos)];
}
