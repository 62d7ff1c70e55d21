/**
 * Collective operations among the processes of a job (native/process_group.h): CPU tensors over the job's store, CUDA tensors over NCCL.
 * All ranks start the same ones in the same order. Each is in place, on a contiguous tensor.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { addon } from "./addon.ts";
import { typedError } from "./native-error.ts";
import type { Tensor } from "./tensor.ts";

/** Numbers of native/process_group.h's CollectiveKind. */
const KINDS = { sum: 0, max: 1, reduceScatter: 2, allGather: 3, broadcast: 4, barrier: 5 } as const;

export interface GroupOptions {
  rank: number; // from 0
  world: number; // how many ranks there are
  /** Where rank 0 keeps the job's store. */
  address: string;
  port: number;
  /** Whether collectives of CUDA tensors will be wanted; they run on the device that is current now. */
  nccl: boolean;
  /** Limit on the ranks' meeting and on every collective that has none of its own. */
  timeoutMs: number;
  /** Whether rank 0 has to keep the store (default), or somebody else does already at that address. */
  serve?: boolean;
  /** Keeps jobs that share a store apart. */
  name?: string;
  /** Ends this process where another rank that has joined gives no sign of life for so long, or says that it has failed; default: never. */
  heartbeatMs?: number;
  /** Ends this process where all ranks have waited for one another for so long; default: never. */
  stallMs?: number;
  /** Where this process is and what it logs to, for the others' messages about it. */
  where?: string;
}

/** A collective that has been started. Its tensor must be left alone, and alive, until wait() has returned. */
export interface PendingCollective {
  /** CPU tensors: returns when the result is there. CUDA tensors: the current stream will wait, the host does not. @throws CollectiveError */
  wait(): void;
}

export interface CollectiveOptions {
  timeoutMs?: number;
}

export class ProcessGroup implements Disposable {
  readonly rank: number;
  readonly world: number;
  readonly #handle: number;
  /** Limit on every collective that has none of its own. */
  readonly timeoutMs: number;
  #closed = false;

  /** Joins the job; returns when all ranks have. @throws CollectiveError that names the ranks which have not joined in time */
  constructor({ rank, world, address, port, nccl, timeoutMs, serve = true, name = "grove", ...heart }: GroupOptions) {
    this.rank = rank;
    this.world = world;
    this.timeoutMs = timeoutMs;
    this.#handle = guard("join", `rank ${rank} of ${world}, ${address}:${port}`, () =>
      addon.groupOpen(
        Float64Array.of(rank, world, port, timeoutMs, Math.ceil(heart.heartbeatMs ?? 0), Math.ceil(heart.stallMs ?? 0)),
        ...([address, nccl, serve, name, heart.where ?? ""] as const),
      ),
    );
  }

  /** Every rank's tensor becomes their element-wise sum, or maximum (NaN where any is NaN on the CPU). */
  allReduce(tensor: Tensor, op: "sum" | "max" = "sum", options?: CollectiveOptions): PendingCollective {
    return this.#start(op, tensor, options);
  }

  /** `flat`, [world * n], is cut into a part for each rank: the own part becomes the sum over the ranks, the others are undefined then. */
  reduceScatter(flat: Tensor, options?: CollectiveOptions): PendingCollective {
    return this.#start("reduceScatter", flat, options);
  }

  /** `flat`, [world * n]: every part becomes what its rank holds there. */
  allGather(flat: Tensor, options?: CollectiveOptions): PendingCollective {
    return this.#start("allGather", flat, options);
  }

  /** Every rank's tensor becomes `root`'s. */
  broadcast(tensor: Tensor, root: number, options?: CollectiveOptions): PendingCollective {
    return this.#start("broadcast", tensor, options, root);
  }

  /** Returns when all ranks have called it. The devices may still be at work. */
  barrier(options?: CollectiveOptions): void {
    this.#start("barrier", null, options).wait();
  }

  /** What this rank is at, for the others' messages about it. */
  operation(text: string): void {
    if (!this.#closed) guard("operation", text, () => addon.groupOperation(this.#handle, text));
  }

  /**
   * Tells the other ranks that this one has failed, and why; they end. Returns when they had time to hear it. This process ends `closingMs` later at
   * the latest. Only the first call counts.
   */
  fail(error: string, closingMs: number): void {
    if (!this.#closed) guard("fail", "", () => addon.groupFail(this.#handle, error, closingMs));
  }

  /** Puts bytes, at most 4 MiB, into the job's store, for one rank to take. */
  post(key: string, bytes: Uint8Array): void {
    guard("post", key, () => addon.storeSet(this.#handle, key, bytes));
  }

  /** Takes what was posted under a key; undefined where nothing is. Does not wait. */
  take(key: string): Uint8Array | undefined {
    return guard("take", key, () => addon.storeTake(this.#handle, key));
  }

  /** Adds to a counter that all ranks see; returns the sum. */
  count(key: string, n: number): number {
    return guard("count", key, () => addon.storeAdd(this.#handle, key, n));
  }

  /** Leaves the job in good order. The store goes with rank 0, which therefore waits until the others have left. */
  async leave(timeoutMs = this.timeoutMs): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    let left = this.count("left", 1);
    while (this.rank === 0 && left < this.world && performance.now() < deadline) {
      await sleep(5);
      left = this.count("left", 0);
    }
    this[Symbol.dispose]();
  }

  /** Leaves the job at once. Where rank 0 does, the others' collectives fail. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    addon.groupClose(this.#handle);
  }

  #start(
    kind: keyof typeof KINDS,
    tensor: Tensor | null,
    options: CollectiveOptions = {},
    root = 0,
  ): PendingCollective {
    const args = tensor === null ? "" : `[${tensor.shape.join(", ")}] ${tensor.dtype}`;
    const timeout = options.timeoutMs ?? this.timeoutMs;
    const pending = guard(kind, args, () =>
      addon.collectiveStart(this.#handle, KINDS[kind], tensor?.handle ?? 0, root, timeout),
    );
    return { wait: () => guard(kind, args, () => addon.collectiveWait(pending)) };
  }
}

/** Has the system kill this process when its parent, process `pid`, ends however that may be; at once where it has ended. Linux only. */
export function endWithParent(pid: number): void {
  guard("endWithParent", String(pid), () => addon.endWithParent(pid));
}

function guard<T>(op: string, args: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    throw typedError(op, args, [], cause);
  }
}
