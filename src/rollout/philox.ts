/**
 * The numbers that choose the tokens: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A completion has
 * a key, the position of the token in it is the counter. The host, the CPU operator (native/sample_tokens.cc) and the kernel
 * (native/kernels/sample_tokens.cu) compute the same numbers.
 */

import { hash64 } from "../random.ts";

const ROUNDS = 10;

/** The key of a completion's draws, two unsigned 32-bit words. */
export function sampleKey(seed: number, step: number, sampleId: string, completion: number): [number, number] {
  return hash64(seed, "sample", step, sampleId, completion);
}

/** The number that chooses the token at a position of the completion with this key: in [0, 1), a multiple of 2^-24, exact in float32. */
export function philoxUniform(key: readonly [number, number], position: number): number {
  return (philox4x32([position, 0, 0, 0], key)[0] >>> 8) / 2 ** 24;
}

type Words4 = [number, number, number, number];

/** Four random words for a counter and a key; all words are unsigned 32-bit. */
export function philox4x32(counter: Readonly<Words4>, key: readonly [number, number]): Words4 {
  let [a, b, c, d] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    [a, b, c, d] = [
      (mulHigh(0xcd9e8d57, c) ^ b ^ k0) >>> 0,
      Math.imul(0xcd9e8d57, c) >>> 0,
      (mulHigh(0xd2511f53, a) ^ d ^ k1) >>> 0,
      Math.imul(0xd2511f53, a) >>> 0,
    ];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** The upper 32 bits of the 64-bit product of two unsigned words. */
function mulHigh(x: number, y: number): number {
  const [x0, x1, y0, y1] = [x & 0xffff, x >>> 16, y & 0xffff, y >>> 16];
  const low = x0 * y0;
  const middle = x1 * y0 + (low >>> 16); // below 2^32
  const middleLow = x0 * y1 + (middle & 0xffff);
  return x1 * y1 + Math.floor(middle / 2 ** 16) + Math.floor(middleLow / 2 ** 16);
}
