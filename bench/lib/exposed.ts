/** How much of a step goes to communication that nothing else covers, from traces of its ranks. */

import { readFileSync } from "node:fs";

/** An event of Chrome's format, as far as it is read here; times in microseconds. */
export interface DeviceEvent {
  ph: string;
  cat?: string;
  name: string;
  ts: number;
  dur?: number;
}

export interface Communication {
  /** From the first kernel to the end of the last one. */
  seconds: number;
  /** Of these, with a kernel of NCCL's under way; waiting for other ranks included, which its kernels do. */
  communicationS: number;
  /** Of these, with no other kernel, copy or fill beside it. */
  exposedS: number;
  exposedShare: number;
}

const DEVICE_WORK = new Set(["kernel", "gpu_memcpy", "gpu_memset"]);
const isNccl = ({ name }: DeviceEvent) => /nccl/i.test(name);

/** Null where the trace has no device's work. */
export function communicationOf(events: readonly DeviceEvent[]): Communication | null {
  const work = events.filter(({ ph, cat }) => ph === "X" && cat !== undefined && DEVICE_WORK.has(cat));
  if (work.length === 0) return null;
  const all = merged(work);
  const others = merged(work.filter((event) => !isNccl(event)));
  const [first, last] = [all[0] as Span, all.at(-1) as Span];
  const seconds = (last.end - first.begin) / 1e6;
  // What all kernels cover and those that are not NCCL's do not, NCCL's cover alone.
  const exposedS = (lengthOf(all) - lengthOf(others)) / 1e6;
  return {
    seconds,
    communicationS: lengthOf(merged(work.filter(isNccl))) / 1e6,
    exposedS,
    exposedShare: seconds === 0 ? 0 : exposedS / seconds,
  };
}

export function communicationOfFile(file: string): Communication | null {
  return communicationOf((JSON.parse(readFileSync(file, "utf8")) as { traceEvents: DeviceEvent[] }).traceEvents);
}

interface Span {
  begin: number;
  end: number;
}

/** The times at which any of them is under way, in order, without overlap. */
function merged(events: readonly DeviceEvent[]): Span[] {
  const spans: Span[] = [];
  for (const { ts, dur = 0 } of [...events].sort((a, b) => a.ts - b.ts)) {
    const last = spans.at(-1);
    if (last !== undefined && ts <= last.end) last.end = Math.max(last.end, ts + dur);
    else spans.push({ begin: ts, end: ts + dur });
  }
  return spans;
}

function lengthOf(spans: readonly Span[]): number {
  return spans.reduce((sum, { begin, end }) => sum + end - begin, 0);
}
