/** Host memory that worker threads can read and tensors of any device are copied into as bytes. */

import os from "node:os";
import { GroveError, invariant } from "../errors.ts";
import { addon } from "./addon.ts";
import { typedError } from "./native-error.ts";
import type { Tensor } from "./tensor.ts";

/** Memory comes in blocks of at most so many bytes: one array of JavaScript's holds only some gigabytes. */
const BLOCK_BYTES = 2 ** 30;

export class HostMemory implements Disposable {
  readonly byteLength: number;
  readonly pinned: boolean;
  readonly #blockBytes: number;
  #blocks: Uint8Array[] = [];

  /**
   * @param options pinned: page-locked, so that a CUDA device copies into it while the host goes on
   * @throws RangeError or NativeError when there is not as much memory, or not as much that can be page-locked
   */
  constructor(byteLength: number, options: { pinned?: boolean; blockBytes?: number } = {}) {
    this.byteLength = byteLength;
    this.pinned = options.pinned ?? false;
    this.#blockBytes = options.blockBytes ?? BLOCK_BYTES;
    try {
      for (let begin = 0; begin < byteLength; begin += this.#blockBytes) {
        const block = new Uint8Array(new SharedArrayBuffer(Math.min(this.#blockBytes, byteLength - begin)));
        if (this.pinned) attempt("HostMemory", block.length, () => addon.memoryPrepare(block));
        this.#blocks.push(block);
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Copies a contiguous tensor's bytes to those from `begin` on. A CPU tensor's are there when this returns; those of a device when the
   * current stream has come so far.
   */
  copyFrom(tensor: Tensor, begin: number): void {
    let from = 0;
    for (const piece of this.ranges(begin, begin + tensor.nbytes)) {
      attempt("HostMemory.copyFrom", tensor, () => addon.tensorBytesTo(tensor.handle, from, piece));
      from += piece.length;
    }
  }

  /** Views of the bytes [begin, end), in order. Sent to a worker thread they are the same memory there. */
  ranges(begin: number, end: number): Uint8Array[] {
    invariant(begin >= 0 && begin <= end && end <= this.byteLength, "a range outside the memory");
    const views: Uint8Array[] = [];
    for (let at = begin; at < end; ) {
      const index = Math.floor(at / this.#blockBytes);
      const offset = at - index * this.#blockBytes;
      const view = (this.#blocks[index] as Uint8Array).subarray(offset, offset + end - at);
      views.push(view);
      at += view.length;
    }
    return views;
  }

  /** Nobody may copy into the memory any more; it goes with its last view. */
  [Symbol.dispose](): void {
    const blocks = this.#blocks;
    this.#blocks = [];
    if (this.pinned) for (const block of blocks) addon.memoryRelease(block);
  }
}

let sharing = 1;

/** Says that so many processes that are alike, this one among them, share the host's memory: the ranks of a machine, say. */
export function shareHostMemory(processes: number): void {
  sharing = processes;
}

/**
 * What the host has free for this process where those that share its memory take as much each: a container may be given less than the machine has, and all
 * of them live in it.
 */
export function freeHostBytes(): number {
  const limit = process.constrainedMemory(); // 0, or more than there is, where there is none
  const taken = sharing * process.memoryUsage.rss();
  const free = limit > 0 ? Math.min(os.freemem(), limit - taken) : os.freemem();
  return Math.max(0, free) / sharing;
}

function attempt(what: string, subject: Tensor | number, run: () => void): void {
  try {
    run();
  } catch (cause) {
    if (cause instanceof GroveError) throw cause;
    const [args, shape] = typeof subject === "number" ? [`${subject} bytes`, []] : [String(subject), subject.shape];
    throw typedError(what, args, shape, cause);
  }
}
