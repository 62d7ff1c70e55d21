/** Runs of an experiment at the same time, one in each slot. */

import { setMaxListeners } from "node:events";
import type { Slot } from "./slots.ts";

export class SlotWork {
  /** Aborted from outside, or once a piece of work has thrown. */
  readonly signal: AbortSignal;
  readonly #stop = new AbortController();
  readonly #free: Slot[];
  readonly #running = new Set<Promise<void>>();
  readonly #errors: unknown[] = [];

  constructor(slots: readonly Slot[], signal: AbortSignal) {
    this.#free = [...slots];
    this.signal = AbortSignal.any([signal, this.#stop.signal]);
    setMaxListeners(0, this.signal); // one for each run at a time
  }

  get isFull(): boolean {
    return this.#free.length === 0;
  }

  get isIdle(): boolean {
    return this.#running.size === 0;
  }

  /** Starts `work` in a free slot; there must be one. */
  start(work: (slot: Slot) => Promise<void>): void {
    const slot = this.#free.shift() as Slot;
    const running = work(slot)
      .catch((error) => {
        this.#errors.push(error);
        this.#stop.abort();
      })
      .finally(() => {
        this.#free.push(slot);
        this.#running.delete(running);
      });
    this.#running.add(running);
  }

  /** Until a piece of work ends. */
  async oneEnds(): Promise<void> {
    await Promise.race(this.#running);
  }

  /** Until all have ended. @throws the first of their errors */
  async allEnd(): Promise<void> {
    await Promise.all(this.#running);
    if (this.#errors.length > 0) throw this.#errors[0];
  }
}
