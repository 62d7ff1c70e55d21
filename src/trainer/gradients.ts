/** Gradients of an update: where backward passes add them, and how those of all ranks become, at each rank, its part of the whole batch's. */

import type { Ranks } from "../distributed/ranks.ts";
import type { Parameter } from "../model/parameter.ts";
import type { PartWatch } from "../model/tape.ts";
import type { PendingCollective } from "../torch/distributed.ts";
import { reshape, slice, zero_, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Bucket, BucketLayout } from "./flat-layout.ts";

export interface Gradients extends Disposable {
  /** Of each bucket this rank's part; that of the whole batch once reduce() has been called. */
  readonly own: readonly Tensor[];
  /** Clears all gradients, for an update from so many backward passes of this rank. */
  begin(passes: number): void;
  /** Makes one of them. */
  backward(run: Backward): void;
  /** Each rank's gradients, of its share of a batch, become those of the whole batch, each rank's in its parts. */
  reduce(): void;
}

/** A parameter and the memory that its gradient is added to. */
export interface View {
  weight: Tensor;
  grad: Tensor;
}

/** Runs one backward pass, telling `watch`, where there is one, which gradients it comes to. */
export type Backward = (watch: PartWatch | undefined) => void;

/**
 * Every rank holds a gradient of each parameter, in the flat layout. During this rank's last backward pass of an update each bucket is reduce-scattered,
 * in place, once the walk has passed its part, beside the walk over the parts before it. Buckets go from the last to the first, on every rank: those that
 * a pass does not come to (it has no picture; the rank has no pass at all) follow in reduce().
 */
export class WholeGradients implements Gradients {
  readonly own: readonly Tensor[];
  readonly #layout: BucketLayout;
  readonly #ranks: Ranks;
  readonly #flat: Tensor; // in the weights' dtype
  readonly #buckets: readonly Tensor[]; // views
  readonly #views: readonly View[];
  readonly #watch: PartWatch;
  readonly #ready = new Set<string>(); // parts whose gradients are this rank's final ones
  readonly #pending: PendingCollective[] = []; // of buckets from the last on
  #passesLeft = 0;

  /** From now on `tensor.grad` of each parameter is a view of one buffer. */
  constructor(parameters: readonly Parameter[], layout: BucketLayout, ranks: Ranks) {
    this.#layout = layout;
    this.#ranks = ranks;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    this.#flat = keep(zeros([layout.size], { dtype, device }));
    this.#buckets = layout.buckets.map(({ begin, size }) => keep(slice(this.#flat, 0, begin, begin + size)));
    this.own = this.#buckets.map((bucket) => ownPart(bucket, ranks));
    this.#views = takeGradients(parameters, this.#flat, layout.starts);
    const after = (part: string) => {
      this.#ready.add(part);
      this.#startReady();
    };
    this.#watch = { before: () => {}, after };
  }

  begin(passes: number): void {
    zero_(this.#flat);
    this.#passesLeft = passes;
    this.#ready.clear();
  }

  backward(run: Backward): void {
    const isLast = --this.#passesLeft === 0;
    run(isLast ? this.#watch : undefined);
  }

  reduce(): void {
    for (const { part } of this.#layout.buckets) this.#ready.add(part);
    this.#startReady();
    for (const one of this.#pending.splice(0)) one.wait();
  }

  #startReady(): void {
    const { group } = this.#ranks;
    if (group === null) return;
    const { buckets } = this.#layout;
    for (let next = buckets.length - 1 - this.#pending.length; next >= 0; next--) {
      if (!this.#ready.has((buckets[next] as Bucket).part)) return;
      this.#pending.push(group.reduceScatter(this.#buckets[next] as Tensor));
    }
  }

  [Symbol.dispose](): void {
    dropGradients(this.#views);
    for (const tensor of [...this.own, ...this.#buckets, this.#flat]) tensor.free();
  }
}

/** This rank's part of a bucket, a view: of equal ones, in the order of the ranks. */
export function ownPart(bucket: Tensor, { rank, world }: Pick<Ranks, "rank" | "world">): Tensor {
  const share = bucket.numel / world;
  return keep(slice(bucket, 0, rank * share, (rank + 1) * share));
}

/** Makes backward add the gradient of parameter i to memory of `flat`, from element `starts[i]` on. */
export function takeGradients(parameters: readonly Parameter[], flat: Tensor, starts: readonly number[]): View[] {
  return parameters.map(({ tensor: weight }, i) => {
    const start = starts[i] as number;
    const grad = keep(scope(() => reshape(slice(flat, 0, start, start + weight.numel), weight.shape)));
    weight.setRequiresGrad(true);
    weight.setGrad(grad);
    return { weight, grad };
  });
}

export function dropGradients(views: readonly View[]): void {
  for (const { weight, grad } of views) {
    weight.setGrad(null);
    grad.free();
  }
}
