/**
 * The tensors of a checkpoint as they are at one moment, in host memory: copied at once from the CPU; from a CUDA device by a stream of its
 * own, behind what was enqueued before and beside what comes after.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { NativeError } from "../errors.ts";
import { log } from "../log.ts";
import { byteLength } from "../model/safetensors.ts";
import { Event, Stream, synchronize, waitEvent } from "../torch/cuda.ts";
import { freeHostBytes, HostMemory } from "../torch/host-memory.ts";
import { contiguous } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { CheckpointFile } from "./checkpoint.ts";
import type { FileToWrite } from "./checkpoint-folder.ts";

/** The share of the host's free memory that a snapshot may take; the rest is for media, page cache and whoever else runs here. */
const STAGED_SHARE = 0.75;

/** Between two looks at whether the device has copied everything. */
const POLL_MS = 10;

export class Snapshot implements Disposable {
  readonly #freeBytes: () => number;
  #memory: HostMemory | null = null; // as large as the largest snapshot so far, and used again
  #refused = false;
  #side: { stream: Stream; copied: Event } | null = null;
  #sources: Tensor[] = []; // what a device is still copying from

  /** @param freeBytes what the host has free for this process: other ranks take theirs just now */
  constructor(freeBytes: () => number = freeHostBytes) {
    this.#freeBytes = freeBytes;
  }

  /**
   * Takes a snapshot. CPU tensors may change from now on, those of a device after beforeUpdate(). The files that are returned are whole once
   * taken() resolves, and until the next take().
   * @returns null where the host has no room for it; the log says so once
   */
  take(files: readonly CheckpointFile[]): FileToWrite[] | null {
    // Handles of our own, also where contiguous() makes no copy: the memory stays until the copies are done, whatever others free.
    const sources = scope(() => {
      const entries = files.flatMap((file) => ("tensors" in file ? file.tensors : []));
      return entries.map(({ read }) => keep(contiguous(read())));
    });
    this.#sources = sources;
    const onDevice = sources.some(({ device }) => device !== "cpu");
    const size = sources.reduce((total, { nbytes }) => total + nbytes, 0);
    let copying = false;
    try {
      const memory = this.#room(size, onDevice);
      if (memory === null) return null;
      if (onDevice) this.#copyBeside(memory, sources);
      else copyAll(memory, sources);
      copying = onDevice;
      return stagedFiles(files, memory);
    } finally {
      if (!copying) this.#release();
    }
  }

  /** Makes the device wait, before what is enqueued from now on, until it has copied the snapshot. The host goes on. */
  beforeUpdate(): void {
    if (this.#side !== null && this.#sources.length > 0) waitEvent(this.#side.copied);
  }

  /** Resolves when the snapshot is in host memory. @throws NativeError for a failure of the device */
  async taken(): Promise<void> {
    try {
      while (this.#side !== null && this.#sources.length > 0 && !this.#side.copied.query()) await sleep(POLL_MS);
    } finally {
      this.#release();
    }
  }

  [Symbol.dispose](): void {
    this.#side?.stream.synchronize();
    this.#release();
    this.#side?.copied[Symbol.dispose]();
    this.#side?.stream[Symbol.dispose]();
    this.#side = null;
    this.#memory?.[Symbol.dispose]();
    this.#memory = null;
  }

  #release(): void {
    for (const tensor of this.#sources) tensor.free();
    this.#sources = [];
  }

  #copyBeside(memory: HostMemory, sources: readonly Tensor[]): void {
    if (sources.some(({ device }) => device === "cpu")) synchronize(); // a device may be writing into those of the host
    this.#side ??= { stream: new Stream(), copied: new Event() };
    const { stream, copied } = this.#side;
    using enqueued = new Event().record();
    stream.wait(enqueued);
    stream.run(() => copyAll(memory, sources));
    copied.record(stream);
  }

  /** Memory for a snapshot of so many bytes, or null. */
  #room(size: number, pinned: boolean): HostMemory | null {
    if (this.#memory !== null && this.#memory.byteLength >= size) return this.#memory;
    if (this.#refused) return null;
    this.#memory?.[Symbol.dispose]();
    this.#memory = null;
    const free = this.#freeBytes();
    let problem = `a snapshot takes ${gib(size)} GiB, ${STAGED_SHARE * 100} % of what the host has free is ${gib(free * STAGED_SHARE)}`;
    if (size <= free * STAGED_SHARE) {
      try {
        this.#memory = new HostMemory(size, { pinned });
        return this.#memory;
      } catch (error) {
        if (!(error instanceof RangeError || error instanceof NativeError)) throw error;
        problem = error.message;
      }
    }
    this.#refused = true;
    log.warn({ problem }, "no host memory for snapshots: training waits while checkpoints are written");
    return null;
  }
}

/** The tensors one behind the other, in their order. */
function copyAll(memory: HostMemory, sources: readonly Tensor[]): void {
  let end = 0;
  for (const source of sources) {
    memory.copyFrom(source, end);
    end += source.nbytes;
  }
}

/** Files whose tensors copyAll has put there. */
function stagedFiles(files: readonly CheckpointFile[], memory: HostMemory): FileToWrite[] {
  let end = 0;
  return files.map((file) => {
    if ("copyOf" in file) return file;
    const { name } = file;
    if ("bytes" in file) return { name, parts: [file.bytes] };
    const begin = end;
    for (const { dtype, shape } of file.tensors) end += byteLength(dtype, shape);
    return { name, parts: [file.head, ...memory.ranges(begin, end)] };
  });
}

function gib(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(1);
}
