/** How long a prompt is, from the sizes of its media alone: no patch is cut, no pixel touched. */

import { DataError, PromptTooLongError } from "../errors.ts";
import type { Sample } from "../types.ts";
import type { Media } from "./options.ts";
import type { PatchRule } from "./patches.ts";
import type { Processor } from "./processor.ts";

/** A decoded picture or video without its pixels. */
export type MediaSize = Pick<Media, "kind" | "frames" | "height" | "width">;

/** Placeholder tokens of one picture or video: its patches in space and time, merged. 16 frames of 252 x 252: 8 x 9 x 9 = 648. */
export function mediaTokens(
  { frames, height, width }: Omit<MediaSize, "kind">,
  { patchSize, temporalPatch, merge }: Pick<PatchRule, "patchSize" | "temporalPatch" | "merge">,
): number {
  const side = patchSize * merge;
  return Math.ceil(frames / temporalPatch) * Math.round(height / side) * Math.round(width / side);
}

/**
 * Tokens of the prompt that `processor.build` makes of this sample.
 * @param media sizes in the order of `mediaOf(sample)`
 * @throws DataError when a question's text contains a placeholder of its own; PromptTooLongError above `limit`
 */
export function promptLength(
  sample: Sample,
  media: readonly MediaSize[],
  { tokenizer, tokenIds, patchRule }: Pick<Processor, "tokenizer" | "tokenIds" | "patchRule">,
  limit: number,
): number {
  const ids = tokenizer.encode(tokenizer.chatText(sample.messages, { addGenerationPrompt: true }));
  for (const kind of ["image", "video"] as const) {
    const found = ids.reduce((count, id) => count + (id === tokenIds[kind] ? 1 : 0), 0);
    const expected = media.filter((one) => one.kind === kind).length;
    if (found === expected) continue;
    const problem = `the chat has ${found} ${kind} placeholders for ${expected} ${kind}s`;
    throw new DataError({ ...sample.source, sampleId: sample.id }, problem);
  }
  const length = media.reduce((sum, one) => sum + mediaTokens(one, patchRule) - 1, ids.length);
  if (length > limit) throw new PromptTooLongError(sample.id, length, limit);
  return length;
}
