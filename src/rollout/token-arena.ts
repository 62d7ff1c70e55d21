/** Where prompts lie in one long buffer of tokens: ranges, first fit, merged again when they are given back. Plain numbers, no tensor. */

import { invariant } from "../errors.ts";

interface Range {
  start: number;
  length: number;
}

export class TokenArena {
  readonly capacity: number; // tokens
  private readonly free: Range[]; // by start; no two touch
  private readonly taken = new Map<number, number>(); // start -> length

  constructor(capacity: number) {
    this.capacity = capacity;
    this.free = capacity > 0 ? [{ start: 0, length: capacity }] : [];
  }

  /** The start of `length` tokens that are nobody else's, the lowest there is; null where no gap is long enough. */
  take(length: number): number | null {
    invariant(length > 0, "a range of no tokens");
    const index = this.free.findIndex((gap) => gap.length >= length);
    if (index < 0) return null;
    const gap = this.free[index] as Range;
    const { start } = gap;
    if (gap.length === length) this.free.splice(index, 1);
    else this.free[index] = { start: start + length, length: gap.length - length };
    this.taken.set(start, length);
    return start;
  }

  /** Gives back the range that begins at `start`. */
  release(start: number): void {
    const length = this.taken.get(start);
    invariant(length !== undefined, `no range begins at token ${start}`);
    this.taken.delete(start);
    const after = this.free.findIndex((gap) => gap.start > start);
    const at = after < 0 ? this.free.length : after;
    this.free.splice(at, 0, { start, length });
    this.join(at);
    if (at > 0) this.join(at - 1);
  }

  /** Tokens in use. */
  get used(): number {
    let tokens = 0;
    for (const length of this.taken.values()) tokens += length;
    return tokens;
  }

  /** Makes one gap of gap `index` and the next where they touch. */
  private join(index: number): void {
    const [gap, next] = [this.free[index], this.free[index + 1]];
    if (gap === undefined || next === undefined || gap.start + gap.length !== next.start) return;
    this.free.splice(index, 2, { start: gap.start, length: gap.length + next.length });
  }
}
