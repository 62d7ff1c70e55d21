/** What one process of a job knows of the others, and how they agree. A run that is alone is a job of one rank: nothing is sent then. */

import { hostname } from "node:os";
import { deserialize, serialize } from "node:v8";
import { CollectiveError } from "../errors.ts";
import { ProcessGroup } from "../torch/distributed.ts";
import { shareHostMemory } from "../torch/host-memory.ts";
import { scope } from "../torch/scope.ts";
import { fromArray } from "../torch/tensor.ts";
import type { Place } from "./environment.ts";
import { CLOSING_MS, onOperation } from "./operation.ts";

/** Bytes of a gathered value that travel with its length; a longer one takes a second exchange. */
const SHORT = 8192;
const LENGTH_BYTES = 8;

export class Ranks {
  readonly rank: number;
  readonly world: number;
  /** null where a run is alone. */
  readonly group: ProcessGroup | null;

  constructor(group: ProcessGroup | null) {
    this.group = group;
    this.rank = group?.rank ?? 0;
    this.world = group?.world ?? 1;
  }

  /** Whether this is the rank that writes what a run writes once. */
  get isFirst(): boolean {
    return this.rank === 0;
  }

  /** Every rank's value, in the order of the ranks, at every rank: plain data, typed arrays included. All ranks call it at the same point. */
  gather<T>(value: T): T[] {
    const { group, world, rank } = this;
    if (group === null) return [value];
    const bytes = serialize(value);
    const room = SHORT - LENGTH_BYTES;
    const heads = this.#exchange(group, SHORT, (own) => {
      own.writeDoubleLE(bytes.length);
      bytes.copy(own, LENGTH_BYTES, 0, room);
    });
    const lengths = heads.map((head) => head.readDoubleLE());
    const longest = Math.max(...lengths);
    const tail = bytes.subarray(Math.min(room, bytes.length)); // of a rank whose value is short: nothing
    const rests = longest > room ? this.#exchange(group, longest - room, (own) => tail.copy(own)) : null;
    return Array.from({ length: world }, (_, from) => {
      if (from === rank) return value;
      const length = lengths[from] as number;
      const head = (heads[from] as Buffer).subarray(LENGTH_BYTES, LENGTH_BYTES + length);
      const rest = rests?.[from]?.subarray(0, Math.max(0, length - room));
      return deserialize(rest === undefined ? head : Buffer.concat([head, rest])) as T;
    });
  }

  /** Whether any rank says so. */
  any(flag: boolean): boolean {
    return this.gather(flag).includes(true);
  }

  /** Adds up a number over the ranks, in their order. */
  sum(value: number): number {
    return this.gather(value).reduce((sum, one) => sum + one, 0);
  }

  /**
   * Whether all ranks are to do the same thing, told by something that has to be equal everywhere.
   * @throws CollectiveError that names what differs, and where
   */
  requireSame(facts: Readonly<Record<string, unknown>>): void {
    const all = this.gather(facts);
    for (const [name, expected] of Object.entries(all[0] ?? {})) {
      const other = all.findIndex((one) => JSON.stringify(one[name]) !== JSON.stringify(expected));
      if (other === -1) continue;
      const values = `${JSON.stringify(expected)} at rank 0, ${JSON.stringify(all[other]?.[name])} at rank ${other}`;
      throw new CollectiveError(`the ranks were not started alike: ${name} is ${values}`, { name, rank: other });
    }
  }

  /** Tells the others that this rank has failed: they end, and name it. What there is to close has CLOSING_MS from then on. Only the first call counts. */
  fail(error: string): void {
    this.group?.fail(error, CLOSING_MS);
  }

  /** Ends a job in good order: rank 0, which may keep the store, stays until all have left. */
  async leave(): Promise<void> {
    await this.group?.leave();
  }

  /** One part from every rank, each of `size` bytes; `fill` writes the own one. */
  #exchange(group: ProcessGroup, size: number, fill: (own: Buffer) => void): Buffer[] {
    const all = Buffer.alloc(size * this.world);
    fill(all.subarray(this.rank * size, (this.rank + 1) * size));
    const received = scope(() => {
      const flat = fromArray(all, [all.length], { dtype: "uint8" });
      group.allGather(flat).wait();
      return Buffer.from(flat.toArray() as Uint8Array);
    });
    return Array.from({ length: this.world }, (_, from) => received.subarray(from * size, (from + 1) * size));
  }
}

/** A run that nobody else takes part in. */
export const ALONE = new Ranks(null);

export interface JoinOptions {
  nccl: boolean;
  /** Limit on the meeting and on every collective. */
  timeoutMs: number;
  /** A rank that gives no sign of life for so long has died; default: nobody looks. */
  heartbeatMs?: number;
  /** Ranks that have all waited for one another for so long are stuck; default: nobody looks. */
  stallMs?: number;
  /** File that this rank logs to. */
  log?: string;
}

/** For whoever reads about this process elsewhere. */
export function whereabouts(log?: string): string {
  return `${hostname()}, process ${process.pid}${log === undefined ? "" : `, its log: ${log}`}`;
}

/** Meets the other ranks of a job. @throws CollectiveError that names the ranks which do not come within `timeoutMs` */
export function joinRanks(place: Place, { nccl, timeoutMs, heartbeatMs = 0, stallMs = 0, log }: JoinOptions): Ranks {
  const { rank, world, localWorld, address, port, serve } = place;
  const where = whereabouts(log);
  const limits = { timeoutMs: Math.ceil(timeoutMs), heartbeatMs, stallMs };
  const group = new ProcessGroup({ rank, world, address, port, nccl, serve, where, ...limits });
  onOperation((text) => group.operation(text));
  shareHostMemory(localWorld);
  return new Ranks(group);
}
