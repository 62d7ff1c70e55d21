/** Completions that have left their slots, kept on the device until all are read at once. */

import { indexCopy_, indexSelect, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import type { DecodeBuffers } from "./decode-buffers.ts";
import type { Sampled } from "./sampled.ts";

const VALUES = ["logprobs", "sampledLogprobs", "entropies"] as const;

export class CompletionStore implements Disposable {
  private readonly buffers: DecodeBuffers;
  private readonly lengths: Tensor; // [completions] int32: tokens less one
  private readonly ids: Tensor; // [completions, N] int32
  private readonly values: Tensor[]; // of VALUES, [completions, N] float32

  constructor(buffers: DecodeBuffers, completions: number) {
    const { device } = buffers.done;
    const { ownSlots: N } = buffers.shape;
    this.buffers = buffers;
    // in a scope, so that what is there is freed where memory ends half-way
    const made = scope(() => ({
      lengths: zeros([completions], { dtype: "int32", device }),
      ids: zeros([completions, N], { dtype: "int32", device }),
      values: VALUES.map(() => zeros([completions, N], { dtype: "float32", device })),
    }));
    this.lengths = keep(made.lengths);
    this.ids = keep(made.ids);
    this.values = made.values.map(keep);
  }

  /** Copies what the slots hold now to the places of their completions. */
  collect(ended: readonly { slot: number; index: number }[]): void {
    const buffers = this.buffers;
    const { device } = buffers.done;
    const places = (of: (item: { slot: number; index: number }) => number) =>
      fromArray(
        BigInt64Array.from(ended, (item) => BigInt(of(item))),
        [ended.length],
        { device },
      );
    scope(() => {
      const from = places(({ slot }) => slot);
      const to = places(({ index }) => index);
      const move = (target: Tensor, source: Tensor) => indexCopy_(target, 0, to, indexSelect(source, 0, from));
      move(this.lengths, buffers.ownLength);
      move(this.ids, buffers.ids);
      for (const [i, name] of VALUES.entries()) move(this.values[i] as Tensor, buffers[name]);
    });
  }

  /** All completions in the order of their places. Waits for the device. */
  read(): Sampled[] {
    const N = this.ids.size(1);
    const lengths = this.lengths.toArray() as Int32Array;
    const ids = this.ids.toArray() as Int32Array;
    const [logprobs, sampledLogprobs, entropies] = this.values.map((value) => value.toArray() as Float32Array) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    return Array.from(lengths, (last, i) => {
      const cut = <T extends Int32Array | Float32Array>(all: T) => all.slice(i * N, i * N + last + 1) as T;
      return {
        ids: cut(ids),
        logprobs: cut(logprobs),
        sampledLogprobs: cut(sampledLogprobs),
        entropies: cut(entropies),
      };
    });
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.lengths, this.ids, ...this.values]) tensor.free();
  }
}
