/**
 * Gradients of which every rank keeps its parts alone (ZeRO-2, arXiv:1910.02054). A backward pass adds the gradient of a part of the model to memory that
 * few buckets share; once the walk has passed it, it is reduce-scattered, beside the walk over the parts before it, and each rank adds what it gets
 * to its part. So gradients travel once for each pass, not once for each update.
 *
 * All ranks make the same collectives in the same order: they agree on the number of rounds beforehand, and in each a bucket goes after the
 * other, from the last to the first. Where a rank has no pass left, or its pass does not come to a part, zeros go.
 *
 * Parts are kept in the weights' dtype, which is what grove::adamw_ takes. In bfloat16 a sum over passes is rounded at each, as it is where a rank
 * holds all gradients; float32 would take as much again as the parts themselves.
 */

import type { Ranks } from "../distributed/ranks.ts";
import { invariant } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import type { PartWatch } from "../model/tape.ts";
import type { PendingCollective } from "../torch/distributed.ts";
import { add_, slice, zero_, zeros } from "../torch/ops.ts";
import { keep } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { BucketArena } from "./bucket-arena.ts";
import type { BucketLayout } from "./flat-layout.ts";
import { type Backward, dropGradients, type Gradients, ownPart, takeGradients, type View } from "./gradients.ts";

export class ShardedGradients implements Gradients {
  readonly own: readonly Tensor[];
  readonly #layout: BucketLayout;
  readonly #ranks: Ranks;
  readonly #parts: Tensor; // this rank's, flat: [size / world]
  readonly #arena: BucketArena;
  readonly #memory: Tensor; // that of the arena
  readonly #buckets: readonly { all: Tensor; own: Tensor }[]; // views of it
  readonly #views: readonly View[];
  readonly #watch: PartWatch;
  readonly #open = new Set<number>(); // buckets that the pass may be adding to
  readonly #travelling = new Map<number, PendingCollective | null>(); // by bucket
  #rounds = 0; // left
  #next = -1; // the bucket that travels next in this round

  /** From now on `tensor.grad` of each parameter is a view of the arena, that holds its gradient while a pass is at its part. */
  constructor(parameters: readonly Parameter[], layout: BucketLayout, ranks: Ranks) {
    this.#layout = layout;
    this.#ranks = ranks;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    const { buckets, starts } = layout;
    const { world } = ranks;
    this.#arena = new BucketArena(layout, "backward");
    const { offsets } = this.#arena;
    this.#memory = keep(zeros([this.#arena.size], { dtype, device }));
    this.#buckets = buckets.map(({ size }, i) => {
      const offset = offsets[i] as number;
      const all = keep(slice(this.#memory, 0, offset, offset + size));
      return { all, own: ownPart(all, ranks) };
    });
    this.#parts = keep(zeros([layout.size / world], { dtype, device }));
    this.own = buckets.map(({ begin, size }) => keep(slice(this.#parts, 0, begin / world, (begin + size) / world)));
    const placed = starts.map((start) => this.#arena.place(start));
    this.#views = takeGradients(parameters, this.#memory, placed);
    this.#watch = { before: (part) => this.#before(part), after: (part) => this.#after(part) };
  }

  begin(passes: number): void {
    zero_(this.#parts);
    this.#rounds = Math.max(...this.#ranks.gather(passes));
  }

  backward(run: Backward): void {
    invariant(this.#rounds > 0, "more backward passes than zeroGrad() was told of");
    this.#rounds--;
    this.#next = this.#buckets.length - 1;
    run(this.#watch);
    this.#sendDownTo(0);
  }

  reduce(): void {
    while (this.#rounds > 0) this.backward(() => {});
    for (const i of [...this.#travelling.keys()]) this.#collect(i);
  }

  #before(part: string): void {
    const i = this.#find(part);
    if (i === -1) return;
    if (part !== this.#layout.lasting) this.#sendDownTo(i + 1);
    this.#clear(i);
  }

  #after(part: string): void {
    const i = this.#find(part);
    if (i !== -1) this.#sendDownTo(i);
  }

  #find(part: string): number {
    return this.#layout.buckets.findIndex((bucket) => bucket.part === part);
  }

  /** Sends buckets, from the next one down to number `last`. */
  #sendDownTo(last: number): void {
    for (; this.#next >= last; this.#next--) {
      const i = this.#next;
      this.#clear(i); // where the pass has not come to it
      this.#open.delete(i);
      this.#travelling.set(i, this.#ranks.group?.reduceScatter(this.#buckets[i]?.all as Tensor) ?? null);
    }
  }

  /** Makes room for a bucket's gradients, unless they are there. */
  #clear(i: number): void {
    if (this.#open.has(i)) return;
    for (const other of [...this.#travelling.keys()]) if (this.#arena.collide(i, other)) this.#collect(other);
    zero_(this.#buckets[i]?.all as Tensor);
    this.#open.add(i);
  }

  /** Adds what a collective has brought to this rank's part. */
  #collect(i: number): void {
    this.#travelling.get(i)?.wait();
    this.#travelling.delete(i);
    add_(this.own[i] as Tensor, this.#buckets[i]?.own as Tensor);
  }

  [Symbol.dispose](): void {
    dropGradients(this.#views);
    for (const { all, own } of this.#buckets) for (const tensor of [all, own]) tensor.free();
    for (const tensor of [...this.own, this.#parts, this.#memory]) tensor.free();
  }
}
