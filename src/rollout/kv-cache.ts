/**
 * Keys and values of a wave of completions, in fixed buffers: each prompt's once, shared by its group, and every completion's own.
 * Letters: Q questions, G completions per question, HK key/value heads, D head size, P slots for the longest prompt, N slots for
 * new tokens.
 */

import { invariant } from "../errors.ts";
import { copy_, fill_, indexCopy_, reshape, select, slice, transpose, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Device, DType, Tensor } from "../torch/tensor.ts";
import { type KvShape, kvBytes, kvDType } from "./kv-shape.ts";

/** Own keys and values are ordered [question, head, completion], so that one batched product serves a whole group. */
export class KvCache implements Disposable {
  readonly shape: KvShape;
  readonly bytes: number;
  readonly dtype: DType;
  readonly promptK: Tensor[]; // per layer [Q, HK, P, D]
  readonly promptV: Tensor[];
  readonly ownK: Tensor[]; // per layer [Q, HK, G, N, D]
  readonly ownV: Tensor[];
  /** Added to the scores: 0 for a prompt's tokens, -infinity beyond its length. [Q * HK, 1, P] float32. */
  readonly promptMask: Tensor;

  /** @param promptLengths of the Q questions, none above `shape.promptSlots` */
  constructor(shape: KvShape, promptLengths: readonly number[], options: { device: Device; dtype: DType }) {
    const { layers, questions: Q, group: G, kvHeads: HK, headDim: D, promptSlots: P, ownSlots: N } = shape;
    invariant(promptLengths.length === Q && Math.max(...promptLengths) <= P, "prompts do not fit the key/value cache");
    const { device } = options;
    const dtype = kvDType(device, options.dtype);
    this.shape = shape;
    this.dtype = dtype;
    this.bytes = kvBytes(shape, dtype);
    // Zeroed: unused slots get probability 0, and 0 times whatever the memory held could be NaN.
    const make = (size: number[]) => Array.from({ length: layers }, () => zeros(size, { dtype, device }));
    // in a scope, so that what is there is freed where memory ends half-way
    const made = scope(() => {
      const promptMask = zeros([Q * HK, 1, P], { dtype: "float32", device });
      const mask = reshape(promptMask, [Q, HK, P]);
      for (const [q, length] of promptLengths.entries()) {
        if (length < P) fill_(slice(select(mask, 0, q), 1, length, P), Number.NEGATIVE_INFINITY);
      }
      const [promptK, promptV] = [make([Q, HK, P, D]), make([Q, HK, P, D])];
      const [ownK, ownV] = [make([Q, HK, G, N, D]), make([Q, HK, G, N, D])];
      return { promptK, promptV, ownK, ownV, promptMask };
    });
    for (const tensor of Object.values(made).flat()) keep(tensor);
    this.promptK = made.promptK;
    this.promptV = made.promptV;
    this.ownK = made.ownK;
    this.ownV = made.ownV;
    this.promptMask = made.promptMask;
  }

  /** Stores a prompt's keys and values, [length, HK, D] each, of one layer. */
  writePrompt(layer: number, question: number, k: Tensor, v: Tensor): void {
    const length = k.size(0);
    for (const [buffer, rows] of [
      [this.promptK[layer], k],
      [this.promptV[layer], v],
    ] as [Tensor, Tensor][]) {
      copy_(slice(select(buffer, 0, question), 1, 0, length), transpose(rows, 0, 1));
    }
  }

  /** Stores the newest token's key and value of every completion, [Q * G, HK, D] each, at the slot in `step`, int64 [1]. */
  writeOwn(layer: number, step: Tensor, k: Tensor, v: Tensor): void {
    const { questions: Q, group: G, kvHeads: HK, headDim: D } = this.shape;
    indexCopy_(this.ownK[layer] as Tensor, 3, step, transpose(reshape(k, [Q, G, HK, 1, D]), 1, 2));
    indexCopy_(this.ownV[layer] as Tensor, 3, step, transpose(reshape(v, [Q, G, HK, 1, D]), 1, 2));
  }

  [Symbol.dispose](): void {
    for (const tensor of [...this.promptK, ...this.promptV, ...this.ownK, ...this.ownV, this.promptMask]) tensor.free();
  }
}
