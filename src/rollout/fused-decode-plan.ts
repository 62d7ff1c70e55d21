/**
 * Attention of one new token per completion by one operator, grove::decode_attention: rotation, cache write, the group's queries against their
 * shared prompt, each completion's against its own tokens. On CUDA it is a kernel whose results equal training's bit for bit; what it computes
 * is told in native/decode_attention.cc. Letters as in kv-cache.ts; B = Q * G completions.
 */

import { invariant } from "../errors.ts";
import type { FusedAttentionPlan } from "../model/attention.ts";
import type { RopeTable } from "../model/rope.ts";
import { op } from "../torch/dispatch.ts";
import { add_, copy_, empty, full, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../torch/tensor.ts";
import type { KvStore } from "./kv-cache.ts";
import type { KvShape } from "./kv-shape.ts";
import type { SamplerModel } from "./sampler-model.ts";

const decodeAttention = op("grove::decode_attention");
const decodeAttentionFits = op("grove::decode_attention_fits");

/** Prompts above this length are cut into chunks that run side by side, where there are too few questions to fill the device. */
const ONE_CHUNK = 1024;
/** Blocks that a GPU of this class (A100, H100, H200) runs side by side. */
const BLOCKS = 132;

/** Whether the kernel takes this model: bfloat16 on an A100, H100 or the like, head sizes 64 and 128, at most 16 query heads to a key/value head. */
export function fusedDecodeFits({ config: { text }, device, dtype, headDim }: SamplerModel): boolean {
  if (device === "cpu" || dtype !== "bfloat16" || text.numHeads / text.numKvHeads > 16) return false;
  return scope(() => decodeAttentionFits(headDim).item() !== 0);
}

/** Keys and values of a wave, token by token: the prompts one behind the other without gaps, then N slots for each completion. */
export class KvPool implements KvStore {
  readonly shape: KvShape;
  readonly bytes: number;
  readonly promptLengths: readonly number[];
  /** First row of each prompt in promptK and promptV. */
  readonly promptStarts: readonly number[];
  readonly promptK: Tensor[] = []; // per layer [T, HK, D], T tokens of all prompts
  readonly promptV: Tensor[] = [];
  readonly ownK: Tensor[] = []; // per layer [B, N, HK, D]
  readonly ownV: Tensor[] = [];

  /** @param promptLengths of the Q questions */
  constructor(shape: KvShape, promptLengths: readonly number[], options: { device: Device; dtype: DType }) {
    const { layers, questions: Q, group: G, kvHeads: HK, headDim: D, ownSlots: N } = shape;
    invariant(promptLengths.length === Q, "one prompt length per question");
    this.shape = shape;
    this.promptLengths = promptLengths;
    let tokens = 0;
    this.promptStarts = promptLengths.map((length) => {
      tokens += length;
      return tokens - length;
    });
    for (let layer = 0; layer < layers; layer++) {
      for (const buffers of [this.promptK, this.promptV]) buffers.push(keep(empty([tokens, HK, D], options)));
      for (const buffers of [this.ownK, this.ownV]) buffers.push(keep(empty([Q * G, N, HK, D], options)));
    }
    this.bytes = 2 * layers * (tokens + Q * G * N) * HK * D * (options.dtype === "float32" ? 4 : 2);
  }

  writePrompt(layer: number, question: number, k: Tensor, v: Tensor): void {
    const start = this.promptStarts[question] as number;
    copy_(slice(this.promptK[layer] as Tensor, 0, start, start + k.size(0)), k);
    copy_(slice(this.promptV[layer] as Tensor, 0, start, start + v.size(0)), v);
  }

  [Symbol.dispose](): void {
    for (const tensor of [...this.promptK, ...this.promptV, ...this.ownK, ...this.ownV]) tensor.free();
  }
}

/** Bound to one round: it counts the tokens that each completion has. */
export class FusedDecodePlan implements FusedAttentionPlan, Disposable {
  private readonly pool: KvPool;
  private readonly rows: Tensor; // [Q, G] int32
  private readonly promptStart: Tensor; // [Q] int32
  private readonly promptLength: Tensor; // [Q] int32
  private readonly ownLength: Tensor; // [B] int32, without the token in progress
  private readonly arrived: Tensor; // [2 * Q * HK] int32, the kernel's own
  /** How prompts are cut: see native/decode_attention.cc. */
  readonly chunking: { chunks: number; chunkKeys: number };

  constructor(pool: KvPool) {
    const { questions: Q, group: G, kvHeads: HK } = pool.shape;
    const device = (pool.ownK[0] as Tensor).device;
    const int = (values: Iterable<number>, size: number[]) =>
      keep(fromArray(Int32Array.from(values), size, { dtype: "int32", device }));
    this.pool = pool;
    this.rows = int(Array(Q * G).keys(), [Q, G]);
    this.promptStart = int(pool.promptStarts, [Q]);
    this.promptLength = int(pool.promptLengths, [Q]);
    this.ownLength = keep(full([Q * G], -1, { dtype: "int32", device }));
    this.arrived = keep(zeros([2 * Q * HK], { dtype: "int32", device }));
    const longest = Math.max(...pool.promptLengths);
    const free = Math.max(1, Math.floor(BLOCKS / (Q * HK)));
    const chunks = Math.min(Math.ceil(longest / ONE_CHUNK), free);
    this.chunking = { chunks, chunkKeys: Math.ceil(longest / chunks / 128) * 128 }; // whole blocks of the kernel
  }

  /** Opens the slot of the next token; called once before the layers of a step. */
  beginStep(): void {
    scope(() => void add_(this.ownLength, 1));
  }

  attendProjections(layer: number, qkv: Tensor, { cos, sin }: RopeTable): Tensor {
    const { promptK, promptV, ownK, ownV, shape } = this.pool;
    return decodeAttention(
      qkv,
      cos,
      sin,
      ownK[layer] as Tensor,
      ownV[layer] as Tensor,
      promptK[layer] as Tensor,
      promptV[layer] as Tensor,
      this.rows,
      this.promptStart,
      this.promptLength,
      this.ownLength,
      this.arrived,
      this.chunking.chunks,
      this.chunking.chunkKeys,
      shape.headDim ** -0.5,
    );
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.rows, this.promptStart, this.promptLength, this.ownLength, this.arrived]) tensor.free();
  }
}
