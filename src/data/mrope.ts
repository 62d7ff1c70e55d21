/**
 * M-RoPE positions of Qwen2-VL (arXiv 2409.12191, section 2.1): text counts on all three axes alike; a picture or video starts where the
 * text before it ended and counts time, height and width apart; what follows starts after the largest position so far.
 *
 * That is the rule Qwen2-VL was trained with (transformers 4, vLLM). transformers 5 moves on by max(h, w) and forgets t: the same unless a
 * video has more time steps than merged patches along its longer side, where it gives the same position twice.
 */

import { invariant } from "../errors.ts";

/** Patches along time, height and width, before the spatial merge. */
export type Grid = readonly [t: number, h: number, w: number];

export interface VisionTokenIds {
  image: number; // <|image_pad|>
  video: number; // <|video_pad|>
}

/**
 * @param ids [L] token ids, every placeholder already repeated once per merged patch
 * @param images grids of the images, in the order of their placeholders; `videos` likewise
 * @param merge merged patches span merge x merge patches (2)
 * @returns positions int32 [3, L], axis-major (t, h, w), and `next`, the position of the token that would follow
 */
export function mropePositions(
  ids: ArrayLike<number>,
  images: readonly Grid[],
  videos: readonly Grid[],
  tokenIds: VisionTokenIds,
  merge: number,
): { positions: Int32Array; next: number } {
  const length = ids.length;
  const positions = new Int32Array(3 * length);
  let next = 0;
  let image = 0;
  let video = 0;
  let at = 0;
  while (at < length) {
    const isImage = ids[at] === tokenIds.image;
    if (!isImage && ids[at] !== tokenIds.video) {
      positions[at] = positions[length + at] = positions[2 * length + at] = next++;
      at++;
      continue;
    }
    const grid = isImage ? images[image++] : videos[video++];
    invariant(grid !== undefined, `a placeholder at token ${at} has no grid`);
    const [t, h, w] = [grid[0], grid[1] / merge, grid[2] / merge];
    for (let i = 0; i < t; i++) {
      for (let j = 0; j < h; j++) {
        for (let k = 0; k < w; k++, at++) {
          positions[at] = next + i;
          positions[length + at] = next + j;
          positions[2 * length + at] = next + k;
        }
      }
    }
    invariant(at <= length, `the placeholders of grid ${grid.join("x")} are cut off`);
    next += Math.max(t, h, w);
  }
  return { positions, next };
}
