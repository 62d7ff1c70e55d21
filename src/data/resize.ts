/**
 * Antialiased bicubic resizing of uint8 pictures, bit for bit as the two reference libraries do it: a horizontal pass, rounded to uint8, then
 * a vertical one, each a weighted sum with integer weights (cubic of Keys with a = -0.5, stretched by the ratio when shrinking).
 * torchvision (ATen's `_upsample_bicubic2d_aa` on uint8) and PIL differ in the precision of those integers only. (Pillow 13 takes the vertical pass
 * first where a picture grows in width and shrinks in height, up to 25 levels apart at sharp edges; Pillow until 12, the seed's, does not.)
 */

import { MediaError } from "../errors.ts";
import { roundHalfEven } from "./frame-index.ts";
import type { SizeRule } from "./options.ts";

/** Whose integer weights: torchvision resizes the seed's video frames, PIL its images. */
export type ResizeFlavour = "torchvision" | "pil";

const CHANNELS = 3;
const SUPPORT = 2; // the cubic reaches two source pixels either way
const PIL_PRECISION = 22; // bits after the point: 32 - 8 - 2
const TORCH_MAX_WEIGHT = 1 << 15; // ATen keeps weights in int16 and takes as many bits as fit
const MAX_RATIO = 200;

/**
 * Resizes RGB pictures.
 *
 * @param data uint8 [height, width, 3]
 * @returns uint8 [newHeight, newWidth, 3]; `data` itself where nothing changes
 */
export function resizeBicubic(
  data: Uint8Array,
  [height, width]: readonly [number, number],
  [newHeight, newWidth]: readonly [number, number],
  flavour: ResizeFlavour,
): Uint8Array {
  let picture = data;
  if (newWidth !== width) picture = resizeRows(picture, height, width, newWidth, taps(width, newWidth, flavour));
  if (newHeight !== height) picture = resizeColumns(picture, newWidth, newHeight, taps(height, newHeight, flavour));
  return picture;
}

/** For each output pixel: the first source pixel it reads, how many, and their integer weights (`count` per row of `weights`). */
interface Taps {
  first: Int32Array;
  counts: Int32Array;
  weights: Int32Array;
  stride: number;
  precision: number;
}

const tapCache = new Map<string, Taps>();

function taps(from: number, to: number, flavour: ResizeFlavour): Taps {
  const key = `${from}:${to}:${flavour}`;
  let value = tapCache.get(key);
  if (value === undefined) {
    if (tapCache.size >= 64) tapCache.clear();
    value = computeTaps(from, to, flavour);
    tapCache.set(key, value);
  }
  return value;
}

function computeTaps(from: number, to: number, flavour: ResizeFlavour): Taps {
  const ratio = from / to;
  const stretch = Math.max(ratio, 1);
  const inverse = 1 / stretch; // both libraries multiply by it, which can differ from dividing in the last bit
  const support = SUPPORT * stretch;
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const counts = new Int32Array(to);
  const real = new Float64Array(to * stride);
  let largest = 0;
  for (let i = 0; i < to; i++) {
    const center = ratio * (i + 0.5);
    const low = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.trunc(center + support + 0.5), from) - low;
    let sum = 0;
    for (let j = 0; j < count; j++) {
      const weight = cubic((j + low - center + 0.5) * inverse);
      real[i * stride + j] = weight;
      sum += weight;
    }
    for (let j = 0; j < count; j++) {
      const weight = real[i * stride + j]! / sum;
      real[i * stride + j] = weight;
      largest = Math.max(largest, weight);
    }
    first[i] = low;
    counts[i] = count;
  }
  const precision = flavour === "pil" ? PIL_PRECISION : torchPrecision(largest);
  // Half away from zero, as C's cast of (x + 0.5) or (x - 0.5) truncates.
  const weights = Int32Array.from(real, (w) => Math.trunc(w * 2 ** precision + (w < 0 ? -0.5 : 0.5)));
  return { first, counts, weights, stride, precision };
}

/** Keys' cubic convolution with a = -0.5. */
function cubic(x: number): number {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return (((d - 5) * d + 8) * d - 4) * a;
  return 0;
}

/** The largest number of bits at which the largest weight still fits ATen's int16. */
function torchPrecision(largest: number): number {
  let precision = 0;
  while (precision < 22 && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < TORCH_MAX_WEIGHT) precision++;
  return precision;
}

function resizeRows(data: Uint8Array, height: number, width: number, newWidth: number, t: Taps): Uint8Array {
  const out = new Uint8ClampedArray(height * newWidth * CHANNELS);
  const { first, counts, weights, stride, precision } = t;
  const half = 1 << (precision - 1);
  let o = 0;
  for (let y = 0; y < height; y++) {
    const row = y * width * CHANNELS;
    for (let x = 0; x < newWidth; x++) {
      let r = half;
      let g = half;
      let b = half;
      let at = row + first[x]! * CHANNELS;
      const end = x * stride + counts[x]!;
      for (let k = x * stride; k < end; k++, at += CHANNELS) {
        const w = weights[k]!;
        r = (r + Math.imul(data[at]!, w)) | 0; // imul: no check for -0 or overflow, which cannot happen here
        g = (g + Math.imul(data[at + 1]!, w)) | 0;
        b = (b + Math.imul(data[at + 2]!, w)) | 0;
      }
      out[o++] = r >> precision; // Uint8ClampedArray clamps
      out[o++] = g >> precision;
      out[o++] = b >> precision;
    }
  }
  return new Uint8Array(out.buffer);
}

function resizeColumns(data: Uint8Array, width: number, newHeight: number, t: Taps): Uint8Array {
  const line = width * CHANNELS;
  const out = new Uint8ClampedArray(newHeight * line);
  const sums = new Int32Array(line);
  const { first, counts, weights, stride, precision } = t;
  for (let y = 0; y < newHeight; y++) {
    sums.fill(1 << (precision - 1));
    for (let k = 0; k < counts[y]!; k++) {
      const w = weights[y * stride + k]!;
      const at = (first[y]! + k) * line;
      for (let x = 0; x < line; x++) sums[x] = (sums[x]! + Math.imul(data[at + x]!, w)) | 0;
    }
    const o = y * line;
    for (let x = 0; x < line; x++) out[o + x] = sums[x]! >> precision;
  }
  return new Uint8Array(out.buffer);
}

/**
 * Qwen2-VL's `smart_resize`: both sides multiples of `factor`, the area within the limits, the aspect ratio kept as well as that allows.
 *
 * @returns [height, width]
 * @throws MediaError for a side more than 200 times the other
 */
export function smartResize(height: number, width: number, rule: SizeRule, file = "picture"): [number, number] {
  const { factor, minPixels, maxPixels } = rule;
  if (Math.max(height, width) / Math.min(height, width) > MAX_RATIO) {
    throw new MediaError(file, `is ${width}x${height}: one side is more than ${MAX_RATIO} times the other`);
  }
  let h = roundHalfEven(height / factor) * factor;
  let w = roundHalfEven(width / factor) * factor;
  if (h * w > maxPixels) {
    const beta = Math.sqrt((height * width) / maxPixels);
    h = Math.max(factor, Math.floor(height / beta / factor) * factor);
    w = Math.max(factor, Math.floor(width / beta / factor) * factor);
  } else if (h * w < minPixels) {
    const beta = Math.sqrt(minPixels / (height * width));
    h = Math.ceil((height * beta) / factor) * factor;
    w = Math.ceil((width * beta) / factor) * factor;
  }
  return [h, w];
}

/** The size a picture of `height` x `width` is brought to: the forced one where both sides of it are set, else `smartResize`. */
export function targetSize(height: number, width: number, rule: SizeRule, file?: string): [number, number] {
  const { resizedHeight, resizedWidth, factor } = rule;
  if (resizedHeight && resizedWidth) {
    // The seed asks for 256 x 256 and gets 252 x 252: its own rounding to the factor, without pixel limits.
    return smartResize(resizedHeight, resizedWidth, { factor, minPixels: factor * factor, maxPixels: Infinity }, file);
  }
  return smartResize(height, width, rule, file);
}
