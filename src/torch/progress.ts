/** The watch over this process's own work (native/stall.h), and what is to be told to it. */

import { url as inspected } from "node:inspector";
import { addon } from "./addon.ts";
import { typedError } from "./native-error.ts";

export interface ProgressOptions {
  /** A process that gets nothing done for so long hangs: it says where, and ends. */
  limitMs: number;
  /** The limit within work that shows nothing while it goes on: disks, one operator on the CPU, page-locking. */
  patienceMs: number;
  /** Index of the CUDA device whose work counts too; -1: none. */
  device: number;
  /** This process among others, e.g. "rank 1 of 2"; may be empty. */
  who: string;
  /** Host, process and log, for the message. */
  where: string;
}

/** Turns of the event loop within a limit. */
const TURNS = 10;

/** A process is watched once at a time. The event loop counts as progress as long as it comes round: what it waits for has limits of its own. */
export class ProgressWatch implements Disposable {
  readonly #timer: NodeJS.Timeout;

  constructor({ limitMs, patienceMs, device, who, where }: ProgressOptions) {
    const isInspected = () => inspected() !== undefined; // at a breakpoint JavaScript stands still, as it should
    try {
      addon.stallWatch(Math.ceil(limitMs), Math.ceil(patienceMs), device, who, where);
    } catch (cause) {
      throw typedError("watch", "", [], cause);
    }
    addon.stallTurn(isInspected());
    this.#timer = setInterval(() => addon.stallTurn(isInspected()), Math.ceil(limitMs / TURNS));
    this.#timer.unref();
  }

  /** What this process is at. */
  operation(text: string): void {
    addon.stallOperation(text);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    addon.stallUnwatch();
  }
}

/** Runs what may hold JavaScript up for long without a sign, as a disk does. */
export function patiently<T>(work: () => T): T {
  addon.stallPatience(true);
  try {
    return work();
  } finally {
    addon.stallPatience(false);
  }
}
