/**
 * Weights of a model that is only read, cut over the ranks: each keeps its part of every bucket, and a pass gathers them, a bucket at a time, into
 * memory that few of them share. While one part of the model computes, the next one arrives.
 *
 * All ranks gather the same buckets in the same order, whether their passes come to them or not: that is what begin() says.
 */

import type { Ranks } from "../distributed/ranks.ts";
import { invariant } from "../errors.ts";
import type { Parameter, ParameterSpec } from "../model/parameter.ts";
import type { PartWatch } from "../model/tape.ts";
import type { PendingCollective } from "../torch/distributed.ts";
import { copy_, reshape, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Device, DType, Tensor } from "../torch/tensor.ts";
import { BucketArena } from "./bucket-arena.ts";
import { type Bucket, type BucketLayout, bucketLayout } from "./flat-layout.ts";
import { ownPart } from "./gradients.ts";

/** Elements [begin, end) of a parameter that one rank keeps. */
export interface OwnPart {
  name: string;
  shape: readonly number[]; // of the whole
  begin: number;
  end: number;
  /** [end - begin], a view of what is kept. */
  own(): Tensor;
}

export class ShardedWeights implements PartWatch, Disposable {
  /** Views of the arena: a parameter's memory holds its weights from before() to after() of its part. */
  readonly parameters: readonly Parameter[];
  readonly #ranks: Ranks;
  readonly #layout: BucketLayout;
  readonly #arena: BucketArena;
  readonly #memory: Tensor; // that of the arena
  readonly #buckets: readonly { all: Tensor; own: Tensor }[]; // views of it
  readonly #shares: Tensor; // what this rank keeps: [size / world]
  readonly #share: readonly Tensor[]; // of each bucket
  readonly #arriving = new Map<number, PendingCollective | null>(); // by bucket
  #lastingIsThere = false; // the bucket that does not take turns is gathered once
  #walk: number[] = []; // buckets, in the order of a pass
  #started = 0; // so many of them
  #done = 0;

  constructor(specs: readonly ParameterSpec[], ranks: Ranks, options: { device: Device; dtype: DType }) {
    const { world } = ranks;
    this.#ranks = ranks;
    const sizes = specs.map(({ name, shape }) => ({ name, numel: shape.reduce((a, b) => a * b, 1) }));
    const layout = bucketLayout(sizes, world);
    this.#layout = layout;
    this.#arena = new BucketArena(layout, "forward");
    this.#memory = keep(zeros([this.#arena.size], options));
    this.#shares = keep(zeros([layout.size / world], options));
    this.#buckets = layout.buckets.map(({ size }, i) => {
      const offset = this.#arena.offsets[i] as number;
      const all = keep(slice(this.#memory, 0, offset, offset + size));
      return { all, own: ownPart(all, ranks) };
    });
    this.#share = layout.buckets.map(({ begin, size }) =>
      keep(slice(this.#shares, 0, begin / world, (begin + size) / world)),
    );
    this.parameters = specs.map(({ name, shape, parts }, i) => {
      const start = this.#arena.place(layout.starts[i] as number);
      const numel = sizes[i]?.numel as number;
      return { name, parts, tensor: keep(scope(() => reshape(slice(this.#memory, 0, start, start + numel), shape))) };
    });
  }

  /** Takes this rank's share of whole parameters, by their names. */
  fill(parameters: readonly Parameter[]): void {
    for (const { name, tensor } of parameters) {
      const part = this.#partOf(this.parameters.findIndex((one) => one.name === name));
      if (part === null) continue;
      scope(() => void copy_(part.own(), slice(reshape(tensor, [-1]), 0, part.begin, part.end)));
    }
    this.#lastingIsThere = false;
  }

  /** What this rank keeps, parameter by parameter, in their order. It may be changed between passes; changed() has to follow. */
  parts(): OwnPart[] {
    return this.parameters.flatMap((_, i) => this.#partOf(i) ?? []);
  }

  /** After what parts() gave has been changed, on all ranks. */
  changed(): void {
    this.#lastingIsThere = false;
  }

  /** This rank's part of a parameter; null where it has none. */
  #partOf(i: number): OwnPart | null {
    const { rank, world } = this.#ranks;
    const { name, tensor } = this.parameters[i] as Parameter;
    const start = this.#layout.starts[i] as number;
    const { begin, size } = this.#layout.buckets.findLast((bucket) => bucket.begin <= start) as Bucket;
    const first = begin + (rank * size) / world; // of this rank's part, in the layout
    const from = Math.max(start, first);
    const to = Math.min(start + tensor.numel, first + size / world);
    if (from >= to) return null;
    const shift = begin / world - first;
    const own = () => slice(this.#shares, 0, from + shift, to + shift);
    return { name, shape: tensor.shape, begin: from - start, end: to - start, own };
  }

  /** Before a pass through these parts of the model, in their order; all ranks say the same. */
  begin(parts: readonly string[]): void {
    invariant(this.#done === this.#walk.length, "a pass over sharded weights has not ended");
    const { buckets, lasting } = this.#layout;
    this.#walk = parts
      .filter((part) => part !== lasting || !this.#lastingIsThere)
      .map((part) => buckets.findIndex((bucket) => bucket.part === part));
    this.#started = 0;
    this.#done = 0;
    this.#advance();
  }

  before(part: string): void {
    const at = this.#find(part);
    if (at === -1) return; // it is there
    this.#leaveUpTo(at);
    this.#settle(this.#walk[at] as number);
  }

  after(part: string): void {
    this.#leaveUpTo(this.#find(part) + 1);
  }

  /** After it: takes part in gathering what this rank's own pass has not come to. */
  end(): void {
    this.#leaveUpTo(this.#walk.length);
  }

  #find(part: string): number {
    return this.#walk.findIndex((i) => this.#layout.buckets[i]?.part === part);
  }

  /** Gives up the buckets before number `at` of the walk. */
  #leaveUpTo(at: number): void {
    while (this.#done < at) {
      this.#settle(this.#walk[this.#done++] as number);
      this.#advance();
    }
  }

  /** Gathers the next buckets, as far as they have room. */
  #advance(): void {
    for (let next = this.#walk[this.#started]; next !== undefined; next = this.#walk[++this.#started]) {
      const present = this.#walk.slice(this.#done, this.#started);
      if (present.some((other) => this.#arena.collide(other, next as number))) return;
      const { all, own } = this.#buckets[next] as { all: Tensor; own: Tensor };
      copy_(own, this.#share[next] as Tensor);
      this.#arriving.set(next, this.#ranks.group?.allGather(all) ?? null);
    }
  }

  #settle(i: number): void {
    this.#arriving.get(i)?.wait();
    this.#arriving.delete(i);
    if (this.#layout.buckets[i]?.part === this.#layout.lasting) this.#lastingIsThere = true;
  }

  [Symbol.dispose](): void {
    for (const { tensor } of this.parameters) tensor.free();
    for (const { all, own } of this.#buckets) for (const tensor of [all, own]) tensor.free();
    for (const tensor of [...this.#share, this.#shares, this.#memory]) tensor.free();
  }
}
