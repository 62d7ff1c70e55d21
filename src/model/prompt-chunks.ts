/**
 * Attention to a prompt is taken in chunks of its keys that are added up afterwards, so that the chunks of one prompt can run side by side
 * (native/decode_attention.cc). Where a prompt is cut is a function of its length alone: the sampler, whatever else it samples, and the trainer
 * cut alike and so compute the same bits (docs/decisions/0004-one-numeric-truth.md).
 */

/** Keys of a chunk while these many chunks suffice; whole key blocks of the kernels (64 or 128). */
const SMALLEST = 256;
const STEP = 128;
/** native/kernels.h has the same number. */
export const MAX_PROMPT_CHUNKS = 16;

/** Keys of every chunk but the last of a prompt of `length` tokens. */
export function promptChunkKeys(length: number): number {
  return Math.max(SMALLEST, Math.ceil(length / MAX_PROMPT_CHUNKS / STEP) * STEP);
}

/** How many chunks a prompt of `length` tokens has: 0 to MAX_PROMPT_CHUNKS. */
export function promptChunks(length: number): number {
  return Math.ceil(length / promptChunkKeys(length));
}

/**
 * The chunks of prompts packed one behind the other, as grove::group_attention takes them: row i of `starts` [chunks, N + 1] has the row at which
 * chunk i of each prompt starts, and the end of all prompts; row i of `lengths` [chunks, N] its keys, 0 for prompts of fewer chunks.
 */
export function chunkTables(promptLengths: readonly number[]) {
  const N = promptLengths.length;
  const chunks = Math.max(1, ...promptLengths.map(promptChunks));
  const starts = new Int32Array(chunks * (N + 1));
  const lengths = new Int32Array(chunks * N);
  let first = 0;
  promptLengths.forEach((length, n) => {
    const keys = promptChunkKeys(length);
    for (let i = 0; i < chunks; i++) {
      const begin = Math.min(i * keys, length);
      starts[i * (N + 1) + n] = first + begin;
      lengths[i * N + n] = Math.min(keys, length - begin);
    }
    first += length;
  });
  for (let i = 0; i < chunks; i++) starts[i * (N + 1) + N] = first;
  return { chunks, starts, lengths };
}
