/** Seconds by phase of work that is only enqueued: by events on the device, so that nobody waits; by the clock where work is done at once. */

import { Event, synchronize } from "../torch/cuda.ts";
import type { Device } from "../torch/tensor.ts";

/** `vision` is part of `prefill`. */
type Phase = "prefill" | "vision";

export class PhaseClock implements Disposable {
  private readonly onDevice: boolean;
  private readonly started = performance.now();
  private readonly hostMs = new Map<Phase, number>();
  private readonly marks: { phase: Phase; start: Event; end: Event }[] = [];

  constructor(device: Device) {
    this.onDevice = device !== "cpu";
  }

  /** Runs `work` and charges `phase` for it. One phase may lie within another; each is charged for the whole. */
  time<T>(phase: Phase, work: () => T): T {
    if (this.onDevice) {
      const mark = { phase, start: new Event(), end: new Event() };
      this.marks.push(mark);
      mark.start.record();
      const result = work();
      mark.end.record();
      return result;
    }
    const before = performance.now();
    const result = work();
    this.hostMs.set(phase, (this.hostMs.get(phase) ?? 0) + performance.now() - before);
    return result;
  }

  /** Of all work charged to `phase`. Waits for the device. */
  seconds(phase: Phase): number {
    const marks = this.marks.filter((mark) => mark.phase === phase);
    const deviceMs = marks.reduce((sum, { start, end }) => sum + start.elapsedMs(end), 0);
    return ((this.hostMs.get(phase) ?? 0) + deviceMs) / 1000;
  }

  /** Since the clock was made. Waits for the device. */
  total(): number {
    if (this.onDevice) synchronize();
    return (performance.now() - this.started) / 1000;
  }

  [Symbol.dispose](): void {
    for (const { start, end } of this.marks) {
      start[Symbol.dispose]();
      end[Symbol.dispose]();
    }
  }
}
