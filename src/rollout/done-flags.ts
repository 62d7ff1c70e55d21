/** Which slots have ended, without making the device wait for the host. */

import { Event } from "../torch/cuda.ts";
import { copy_ } from "../torch/ops.ts";
import { keep } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";

/** The flags as they were when the scheduler's clock stood at `at`. */
export interface Look {
  done: Int32Array; // by slot, not 0: ended
  at: number;
}

export interface DoneFlags extends Disposable {
  /** Notes the flags as they are behind everything enqueued so far; returns what is known by now, if anything new is. */
  look(clock: number): Look | null;
}

/** Looks between two copies. */
const EVERY = 2;

/**
 * Every other look enqueues a copy to the host and returns the copy before it: the host runs two to four steps ahead of what it knows, so the
 * device always has work, and what is known when does not depend on how fast anything runs.
 */
class DelayedFlags implements DoneFlags {
  private readonly done: Tensor;
  private readonly copies: { host: Tensor; arrived: Event; at: number }[];
  private looks = 0;

  constructor(done: Tensor) {
    this.done = done;
    const size = done.size(0);
    this.copies = [0, 1].map(() => ({
      host: keep(fromArray(new Int32Array(size), [size], { pinned: true })),
      arrived: new Event(),
      at: 0,
    }));
  }

  look(clock: number): Look | null {
    if (++this.looks % EVERY !== 0) return null;
    const [earlier, next] = this.copies as [(typeof this.copies)[0], (typeof this.copies)[0]];
    this.copies.reverse();
    copy_(next.host, this.done, true);
    next.arrived.record();
    next.at = clock;
    if (this.looks === EVERY) return null; // the first copy
    earlier.arrived.synchronize();
    return { done: earlier.host.toArray() as Int32Array, at: earlier.at };
  }

  [Symbol.dispose](): void {
    for (const { host, arrived } of this.copies) {
      host.free();
      arrived[Symbol.dispose]();
    }
  }
}

/** Where work is done when it is enqueued there is nothing to wait for. */
class ImmediateFlags implements DoneFlags {
  private readonly done: Tensor;

  constructor(done: Tensor) {
    this.done = done;
  }

  look(clock: number): Look {
    return { done: this.done.toArray() as Int32Array, at: clock };
  }

  [Symbol.dispose](): void {}
}

/** @param done int32, by slot: not 0 where the completion has ended */
export function doneFlags(done: Tensor): DoneFlags {
  return done.device === "cpu" ? new ImmediateFlags(done) : new DelayedFlags(done);
}
