/** Cuts uint8 pictures into the normalised patch rows that Qwen2-VL's vision tower reads, in the order of its processor. */

import { invariant } from "../errors.ts";
import type { VisionInput } from "../types.ts";
import type { Media } from "./options.ts";

/** What preprocessor_config.json says about patches and normalisation. */
export interface PatchRule {
  patchSize: number; // 14
  temporalPatch: number; // 2
  merge: number; // 2
  mean: readonly [number, number, number]; // of channel values in [0, 1]
  std: readonly [number, number, number];
}

/** One image or video as the vision tower reads it: what a media worker hands back for a prompt. */
export interface Picture {
  kind: Media["kind"];
  input: VisionInput;
}

const CHANNELS = 3;

/**
 * @param media uint8 RGB [frames, height, width, 3]; an image is one frame and is repeated to fill the temporal patch, as is the last frame
 *   of an odd number of them
 * @returns pixels float32 [t*h*w, 3*temporalPatch*patch*patch]; rows ordered (t, h/merge, w/merge, h%merge, w%merge), columns (channel, t, y, x)
 */
export function cutPatches(media: Media, rule: PatchRule): VisionInput {
  const { patchSize: p, temporalPatch, merge } = rule;
  const { data, frames, height, width } = media;
  invariant(
    height % (p * merge) === 0 && width % (p * merge) === 0,
    `${width}x${height} is no multiple of ${p * merge}`,
  );
  const [gridT, gridH, gridW] = [Math.ceil(frames / temporalPatch), height / p, width / p];
  const tables = normaliseTables(rule);
  const pixels = new Float32Array(gridT * gridH * gridW * CHANNELS * temporalPatch * p * p);
  const line = width * CHANNELS;
  let o = 0;
  for (let t = 0; t < gridT; t++) {
    for (let bh = 0; bh < gridH; bh += merge) {
      for (let bw = 0; bw < gridW; bw += merge) {
        for (let m = 0; m < merge * merge; m++) {
          const top = (bh + Math.floor(m / merge)) * p;
          const left = (bw + (m % merge)) * p;
          for (let c = 0; c < CHANNELS; c++) {
            const table = tables[c]!;
            for (let tt = 0; tt < temporalPatch; tt++) {
              const frame = Math.min(t * temporalPatch + tt, frames - 1);
              let row = (frame * height + top) * line + left * CHANNELS + c;
              for (let y = 0; y < p; y++, row += line) {
                for (let x = 0, at = row; x < p; x++, at += CHANNELS) pixels[o++] = table[data[at]!]!;
              }
            }
          }
        }
      }
    }
  }
  return { pixels, grid: [gridT, gridH, gridW] };
}

/** Grey level -> normalised value per channel, in the float32 steps of transformers: mean and std are scaled by 255 instead of the pixels. */
function normaliseTables(rule: PatchRule): Float32Array[] {
  return [0, 1, 2].map((c) => {
    const mean = Math.fround(Math.fround(rule.mean[c]!) * 255);
    const std = Math.fround(Math.fround(rule.std[c]!) * 255);
    return Float32Array.from({ length: 256 }, (_, level) => Math.fround(level - mean) / std);
  });
}
