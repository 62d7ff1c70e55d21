/**
 * CUDA streams, events, graphs and memory statistics, and the process-wide settings of the engine. Without CUDA, cudaAvailable() is
 * false, deviceCount() 0, synchronize() and emptyCache() do nothing, memoryStats() is all zeros, and the classes refuse to be made.
 */
import { addon, io } from "./addon.ts";
import { deviceCode } from "./dtype.ts";
import { typedError } from "./native-error.ts";

let available: boolean | null = null;

/** A CUDA build that sees at least one device. */
export function cudaAvailable(): boolean {
  available ??= addon.cudaAvailable();
  return available;
}

export function deviceCount(): number {
  return addon.cudaDeviceCount();
}

/** e.g. "NVIDIA H200". */
export function deviceName(index = 0): string {
  return attempt("deviceName", () => addon.cudaDeviceName(index));
}

/** Makes CUDA device `index` the one that "cuda" means. @throws AddonError where there is no CUDA */
export function setDevice(index: number): void {
  deviceCode(`cuda:${index}`);
  attempt("setDevice", () => addon.cudaSetDevice(index));
}

/** Waits until the current device has done all enqueued work. */
export function synchronize(): void {
  if (cudaAvailable()) attempt("synchronize", () => addon.cudaSynchronize());
}

/** Bytes on the current CUDA device. `peak` is the most allocated at a time since resetPeakMemory. */
export interface MemoryStats {
  allocated: number;
  reserved: number;
  peak: number;
  peakReserved: number;
  free: number;
  total: number;
}

export function memoryStats(): MemoryStats {
  if (!cudaAvailable()) return { allocated: 0, reserved: 0, peak: 0, peakReserved: 0, free: 0, total: 0 };
  attempt("memoryStats", () => addon.cudaMemoryStats());
  return { allocated: io[0]!, reserved: io[1]!, peak: io[2]!, peakReserved: io[3]!, free: io[4]!, total: io[5]! };
}

export function resetPeakMemory(): void {
  if (cudaAvailable()) attempt("resetPeakMemory", () => addon.cudaResetPeakMemory());
}

/** Gives cached blocks back to the driver. */
export function emptyCache(): void {
  if (cudaAvailable()) attempt("emptyCache", () => addon.cudaEmptyCache());
}

/** Threads that CPU operators use. */
export function setNumThreads(threads: number): void {
  attempt("setNumThreads", () => addon.setNumThreads(threads));
}

/**
 * With true operators and kernels add up in a fixed order from now on, and those of libtorch that cannot are errors. Products need their
 * workspace's size fixed too, by CUBLAS_WORKSPACE_CONFIG before the first of them: set here unless the environment has it.
 */
export function setDeterministic(on: boolean): void {
  if (on) process.env.CUBLAS_WORKSPACE_CONFIG ??= ":4096:8";
  attempt("setDeterministic", () => addon.setDeterministic(on));
}

export interface Versions {
  /** libtorch's, e.g. "2.13.0". */
  torch: string;
  /** Whether libtorch was built with CUDA; a device may still be missing. */
  cudaBuild: boolean;
  /** Whether our own CUDA kernels are loaded. */
  kernels: boolean;
  threads: number;
}

export function versions(): Versions {
  return addon.versions();
}

let currentStream = 0;

/** A CUDA stream of libtorch's pool. */
export class Stream implements Disposable {
  readonly handle: number;

  constructor(options: { highPriority?: boolean } = {}) {
    this.handle = attempt("Stream", () => addon.streamNew(options.highPriority ?? false));
  }

  /** Enqueues on this stream whatever `fn` runs, then returns to the stream before. Orders nothing: use events. */
  run<T>(fn: () => T): T {
    const before = currentStream;
    attempt("Stream.run", () => addon.streamSetCurrent(this.handle));
    currentStream = this.handle;
    try {
      return fn();
    } finally {
      currentStream = before;
      attempt("Stream.run", () => addon.streamSetCurrent(before));
    }
  }

  /** Blocks the host until the stream is idle. */
  synchronize(): void {
    attempt("Stream.synchronize", () => addon.streamSynchronize(this.handle));
  }

  /** Later work on this stream starts after the event; the host goes on. */
  wait(event: Event): void {
    attempt("Stream.wait", () => addon.streamWaitEvent(this.handle, event.handle));
  }

  [Symbol.dispose](): void {
    addon.streamFree(this.handle);
  }
}

/** Lets later work on the current stream wait for an event. */
export function waitEvent(event: Event): void {
  attempt("waitEvent", () => addon.streamWaitEvent(0, event.handle));
}

/** A point in a stream's work, with its time. */
export class Event implements Disposable {
  readonly handle: number;

  constructor() {
    this.handle = attempt("Event", () => addon.eventNew());
  }

  /** Marks the work enqueued so far on `stream`, or on the current one. */
  record(stream?: Stream): this {
    attempt("Event.record", () => addon.eventRecord(this.handle, stream?.handle ?? 0));
    return this;
  }

  synchronize(): void {
    attempt("Event.synchronize", () => addon.eventSynchronize(this.handle));
  }

  /** Whether the marked work is done. */
  query(): boolean {
    return attempt("Event.query", () => addon.eventQuery(this.handle));
  }

  /** Milliseconds from this event to `end`; waits for `end`. */
  elapsedMs(end: Event): number {
    end.synchronize();
    return attempt("Event.elapsedMs", () => addon.eventElapsed(this.handle, end.handle));
  }

  [Symbol.dispose](): void {
    addon.eventFree(this.handle);
  }
}

/**
 * A captured sequence of kernels, replayed with one launch. Shapes and addresses are fixed: inputs are tensors made before the
 * capture and overwritten (copy_) before each replay; outputs are tensors made inside `fn` and kept, overwritten by each replay.
 * Run `fn` once eagerly before capturing, so that libraries are loaded and workspaces made. Nothing inside may wait for the device.
 */
export class CudaGraph implements Disposable {
  readonly handle: number;

  constructor() {
    this.handle = attempt("CudaGraph", () => addon.graphNew());
  }

  /**
   * Records what `fn` enqueues, without running it. Graphs with a common pool share scratch memory and must be replayed in the order
   * of their capture. @throws NativeError when something inside cannot be captured
   */
  capture<T>(fn: () => T, options: { poolOf?: CudaGraph } = {}): T {
    attempt("CudaGraph.capture", () => addon.graphBegin(this.handle, options.poolOf?.handle ?? 0));
    let result: T;
    try {
      result = fn();
    } catch (error) {
      try {
        addon.graphEnd(this.handle); // leaves capture mode; the first error is the one to report
      } catch {}
      throw error;
    }
    attempt("CudaGraph.capture", () => addon.graphEnd(this.handle));
    return result;
  }

  replay(): void {
    attempt("CudaGraph.replay", () => addon.graphReplay(this.handle));
  }

  [Symbol.dispose](): void {
    addon.graphFree(this.handle);
  }
}

function attempt<T>(what: string, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    throw typedError(what, "", [], cause);
  }
}
