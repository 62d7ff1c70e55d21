/**
 * Everything on the device that decode steps by slots read and write, at addresses that stay: keys and values, the state of each slot, the logits
 * behind each prompt. Letters: R rows of a step, S slots, N tokens at most in each, T tokens of prompts, P seats, HK key/value heads, D head size,
 * V vocabulary. The state has one slot more than S, in which nobody ever is: rows without a completion belong to it.
 */

import { op } from "../torch/dispatch.ts";
import { empty, fill_, indexCopy_, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type DType, fromArray, type NumberArray, type Tensor } from "../torch/tensor.ts";
import type { SlotState } from "./sample-token.ts";
import type { SamplerModel } from "./sampler-model.ts";
import { kvBytesOf, type ModelSizes, type SlotShape, slotBytes } from "./slot-shape.ts";

const indexFill_ = op("aten::index_fill_.int_Scalar");

/** A completion on its way into a slot. */
export interface SlotStart {
  slot: number;
  key: readonly [number, number]; // of its draws, see philox.ts
  limit: number; // most tokens
  nextPosition: number; // of its first token, the same on all axes
}

export function sizesOf({ config: { text }, device, dtype, headDim }: SamplerModel): ModelSizes {
  const { numLayers: layers, numKvHeads: kvHeads, vocabSize } = text;
  return { layers, kvHeads, headDim, vocabSize, device, dtype };
}

export class DecodeBuffers implements SlotState, Disposable {
  readonly shape: SlotShape;
  readonly kvBytes: number;
  readonly bytes: number;
  readonly promptK: Tensor[] = []; // per layer [T, HK, D]
  readonly promptV: Tensor[] = [];
  readonly ownK: Tensor[] = []; // per layer [S, N, HK, D]
  readonly ownV: Tensor[] = [];
  /** After each seated prompt's last token, [P, V]. */
  readonly promptLogits: Tensor;
  /** 0 .. R - 1, [R] int32. */
  readonly everyRow: Tensor;

  // SlotState of S + 1 slots; one that nobody is in is done
  readonly key: Tensor;
  readonly limit: Tensor;
  readonly tokens: Tensor;
  readonly ropePositions: Tensor;
  readonly ownLength: Tensor;
  readonly done: Tensor;
  readonly ids: Tensor;
  readonly logprobs: Tensor;
  readonly sampledLogprobs: Tensor;
  readonly entropies: Tensor;
  /** ownLength of the S slots that there are keys and values for; the same memory. */
  readonly ownLengths: Tensor;

  private readonly owned: Tensor[] = [];

  constructor(shape: SlotShape, model: SamplerModel) {
    const { device, dtype } = model;
    const sizes = sizesOf(model);
    const { rows: R, slots: S, ownSlots: N, seats: P, arenaTokens: T } = shape;
    const { layers, kvHeads: HK, headDim: D, vocabSize: V } = sizes;
    this.shape = shape;
    this.kvBytes = kvBytesOf(shape, sizes);
    this.bytes = slotBytes(shape, sizes);
    const own = (tensor: Tensor) => {
      this.owned.push(keep(tensor));
      return tensor;
    };
    const clear = (size: number[], type: DType) => own(zeros(size, { dtype: type, device }));
    try {
      for (let layer = 0; layer < layers; layer++) {
        for (const buffers of [this.promptK, this.promptV]) buffers.push(own(empty([T, HK, D], { dtype, device })));
        for (const buffers of [this.ownK, this.ownV]) buffers.push(own(empty([S, N, HK, D], { dtype, device })));
      }
      this.promptLogits = own(empty([P, V], { dtype, device }));
      this.everyRow = own(fromArray(Int32Array.from(Array(R).keys()), [R], { device }));
      this.key = clear([S + 1, 2], "int32");
      this.limit = clear([S + 1], "int32");
      this.tokens = clear([S + 1], "int64");
      this.ropePositions = clear([3, S + 1], "int64");
      this.ownLength = clear([S + 1], "int32");
      this.done = own(fromArray(new Int32Array(S + 1).fill(1), [S + 1], { device }));
      this.ids = clear([S + 1, N], "int32");
      this.logprobs = clear([S + 1, N], "float32");
      this.sampledLogprobs = clear([S + 1, N], "float32");
      this.entropies = clear([S + 1, N], "float32");
      this.ownLengths = own(slice(this.ownLength, 0, 0, S));
    } catch (error) {
      this[Symbol.dispose](); // out of memory half-way
      throw error;
    }
  }

  /** Makes slots ready for the first draw of new completions. */
  start(starts: readonly SlotStart[]): void {
    const count = starts.length;
    const { device } = this.done;
    const upload = (array: NumberArray, size: number[]) => fromArray(array, size, { device });
    scope(() => {
      const slots = upload(
        BigInt64Array.from(starts, ({ slot }) => BigInt(slot)),
        [count],
      );
      const keys = upload(Int32Array.from(starts.flatMap(({ key }) => key)), [count, 2]);
      const limits = upload(
        Int32Array.from(starts, ({ limit }) => limit),
        [count],
      );
      // every draw moves on by one first
      const before = starts.map(({ nextPosition }) => BigInt(nextPosition - 1));
      const positions = upload(BigInt64Array.from([...before, ...before, ...before]), [3, count]);
      indexCopy_(this.key, 0, slots, keys);
      indexCopy_(this.limit, 0, slots, limits);
      indexCopy_(this.ropePositions, 1, slots, positions);
      indexFill_(this.ownLength, 0, slots, -1);
      indexFill_(this.done, 0, slots, 0);
    });
  }

  /** Empties every slot, so that what an earlier rollout left in them does no work. */
  clear(): void {
    fill_(this.done, 1);
  }

  /** Keys and values [tokens, HK, D] of one layer to `places` in the arena, int64 [tokens]. */
  writePrompts(layer: number, places: Tensor, k: Tensor, v: Tensor): void {
    indexCopy_(this.promptK[layer] as Tensor, 0, places, k);
    indexCopy_(this.promptV[layer] as Tensor, 0, places, v);
  }

  [Symbol.dispose](): void {
    for (const tensor of this.owned) tensor.free();
  }
}
