/** Gradients of an update: where backward passes add them, and how those of all ranks become, at each rank, its part of the whole batch's. */

import type { Ranks } from "../distributed/ranks.ts";
import type { Parameter } from "../model/parameter.ts";
import { reshape, slice, zero_, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { BucketLayout } from "./flat-layout.ts";

/** A parameter and the memory that its gradient is added to. */
interface View {
  weight: Tensor;
  grad: Tensor;
}

/** Every rank holds a gradient of each parameter, in the flat layout; from the last backward pass on each bucket is reduce-scattered in place. */
export class WholeGradients implements Disposable {
  /** Of each bucket this rank's part; that of the whole batch once reduce() has been called. */
  readonly own: readonly Tensor[];
  readonly #ranks: Ranks;
  readonly #flat: Tensor; // in the weights' dtype
  readonly #buckets: readonly Tensor[]; // views
  readonly #views: readonly View[];

  /** From now on `tensor.grad` of each parameter is a view of one buffer. */
  constructor(parameters: readonly Parameter[], layout: BucketLayout, ranks: Ranks) {
    this.#ranks = ranks;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    this.#flat = keep(zeros([layout.size], { dtype, device }));
    this.#buckets = layout.buckets.map(({ begin, size }) => keep(slice(this.#flat, 0, begin, begin + size)));
    this.own = this.#buckets.map((bucket) => ownPart(bucket, ranks));
    this.#views = takeGradients(parameters, this.#flat, layout.starts);
  }

  begin(): void {
    zero_(this.#flat);
  }

  /** Each rank's gradients, of its share of a batch, become those of the whole batch, each rank's in its part. */
  reduce(): void {
    const { group } = this.#ranks;
    const pending = this.#buckets.toReversed().map((bucket) => group?.reduceScatter(bucket));
    for (const one of pending) one?.wait();
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
