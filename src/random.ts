/**
 * Counter-based randomness: every draw is a pure function of its keys (seed, step, sample id, position, ...), never of the order in
 * which draws happen. A run can therefore be resumed, split over ranks or batched differently and draw the same numbers.
 */

export type RandomKey = number | string;

/** 53 uniform random bits as a number in [0, 1), from any list of keys. The same keys give the same number on every machine. */
export function uniform(...keys: RandomKey[]): number {
  const [high, low] = hash64(...keys);
  return ((high >>> 5) * 67108864 + (low >>> 6)) / 9007199254740992;
}

/** A uniform integer in [0, n). */
export function randomInt(n: number, ...keys: RandomKey[]): number {
  return Math.floor(uniform(...keys) * n);
}

/** A standard normal draw (Box-Muller). */
export function normal(...keys: RandomKey[]): number {
  const radius = Math.sqrt(-2 * Math.log(1 - uniform(...keys, "radius")));
  return radius * Math.cos(2 * Math.PI * uniform(...keys, "angle"));
}

/** A shuffled copy (Fisher-Yates). */
export function shuffled<T>(items: readonly T[], ...keys: RandomKey[]): T[] {
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = randomInt(i + 1, ...keys, i);
    [out[i], out[j]] = [out[j] as T, out[i] as T];
  }
  return out;
}

/** One of the items. */
export function pick<T>(items: readonly T[], ...keys: RandomKey[]): T {
  return items[randomInt(items.length, ...keys)] as T;
}

/** Two 32-bit hashes of the keys, unsigned: MurmurHash3 rounds over their 32-bit words, run twice with other seeds. */
export function hash64(...keys: RandomKey[]): [high: number, low: number] {
  let a = 0x9747b28c;
  let b = 0x3c6ef372;
  let words = 0;
  const word = (w: number) => {
    a = round(a, w);
    b = round(b, w ^ 0x5bd1e995);
    words++;
  };
  for (const key of keys) {
    if (typeof key === "string") {
      word(0x73747200 ^ key.length); // tags the type, so that "1" and 1 differ
      for (let i = 0; i < key.length; i++) word(key.charCodeAt(i));
    } else {
      if (!Number.isFinite(key)) throw new RangeError(`random keys must be finite, got ${key}`);
      FLOAT[0] = key;
      word(WORDS[0] as number);
      word(WORDS[1] as number);
    }
  }
  return [finish(a ^ words, 0x85ebca6b), finish(b ^ (words << 16), 0xc2b2ae35)];
}

const FLOAT = new Float64Array(1);
const WORDS = new Uint32Array(FLOAT.buffer);

function round(hash: number, word: number): number {
  let k = Math.imul(word, 0xcc9e2d51);
  k = (k << 15) | (k >>> 17);
  let h = hash ^ Math.imul(k, 0x1b873593);
  h = (h << 13) | (h >>> 19);
  return (Math.imul(h, 5) + 0xe6546b64) | 0;
}

function finish(hash: number, salt: number): number {
  let h = hash ^ salt;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
