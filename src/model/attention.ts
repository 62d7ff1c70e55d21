/**
 * How the language model's layers attend is a plan, handed to a forward pass: the layer code is the same for prefill, decode and
 * training. Plans for packs of prompts and completions are here; the decode plan belongs to the sampler.
 *
 * Shapes: T rows of a pack, H query heads, K key-value heads, D head size.
 */

import { ShapeError } from "../errors.ts";
import { noGrad } from "../torch/autograd.ts";
import { op } from "../torch/dispatch.ts";
import { cat, scaledDotProductAttention, slice, squeeze, transpose, unsqueeze } from "../torch/ops.ts";
import { keep } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import { chunkTables, promptChunkKeys } from "./prompt-chunks.ts";
import type { RopeTable } from "./rope.ts";

export interface AttentionPlan {
  /** q [T, H, D], k and v [T, K, D], q and k already rotated. Returns [T, H, D]. */
  attend(layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor;
  /**
   * The same from qkv [T, H + 2 K, D], not rotated; null where the plan must have q, k and v. `ownValues`: a graph holds a copy of v, not all of qkv for
   * its sake.
   */
  attendQkv?(qkv: Tensor, rope: RopeTable, kvHeads: number, ownValues: boolean): Tensor | null;
}

/** A plan whose kernel does the rotation too. */
export interface FusedAttentionPlan {
  /** qkv [T, H + 2 K, D], not rotated. Returns [T, H, D]. */
  attendProjections(layer: number, qkv: Tensor, rope: RopeTable): Tensor;
}

/** Segment lengths of a pack (see packed.ts). */
export interface Segments {
  promptLengths: readonly number[]; // [N]
  completionLengths: readonly (readonly number[])[]; // [N][G]
}

const groupAttention = op("grove::group_attention");
const projectedAttention = op("grove::projected_attention");

/**
 * Prompts attend to themselves causally, completions to all of their prompt and to themselves causally.
 * `fused` is the custom op grove::group_attention (the CPU; on CUDA flash attention, so 16-bit types and head sizes up to 256);
 * `dense` is the same as a masked attention per group, the op's reference. `auto` takes the op wherever it runs.
 */
export class PackedPlan implements AttentionPlan, Disposable {
  readonly #segments: Segments;
  readonly #path: "auto" | "fused" | "dense";
  readonly #rows: number;
  readonly #promptRows: number;
  #offsets: { prompt: Tensor; group: Tensor; completion: Tensor; starts: Tensor; lengths: Tensor } | null = null;
  #masks: Tensor[] | null = null;

  constructor(segments: Segments, path: "auto" | "fused" | "dense" = "auto") {
    this.#segments = segments;
    this.#path = path;
    this.#promptRows = sum(segments.promptLengths);
    this.#rows = this.#promptRows + sum(segments.completionLengths.flat());
  }

  attend(_layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    if (q.size(0) !== this.#rows)
      throw new ShapeError("attention", `q [${this.#rows}, heads, headDim] for this pack`, q.shape);
    return this.#isFused(q) ? groupAttention(q, k, v, ...this.#layout(q)) : this.#dense(q, k, v);
  }

  attendQkv(qkv: Tensor, rope: RopeTable, kvHeads: number, ownValues: boolean): Tensor | null {
    if (qkv.size(0) !== this.#rows || !this.#isFused(qkv)) return null;
    return projectedAttention(qkv, rope.cos, rope.sin, kvHeads, ownValues, ...this.#layout(qkv));
  }

  [Symbol.dispose](): void {
    for (const tensor of [...Object.values(this.#offsets ?? {}), ...(this.#masks ?? [])]) tensor.free();
    this.#offsets = null;
    this.#masks = null;
  }

  #isFused(x: Tensor): boolean {
    const fits = x.device === "cpu" || (isHalf(x) && x.size(2) % 8 === 0 && x.size(2) <= 256);
    return this.#path === "fused" || (this.#path === "auto" && fits);
  }

  /** The op's arguments behind its tensors of rows; `x` is one of these, [T, heads, D]. */
  #layout(x: Tensor): (Tensor | number)[] {
    const { promptLengths, completionLengths } = this.#segments;
    const perGroup = completionLengths.map(sum);
    const completions = completionLengths.flat();
    const int = (values: Int32Array, size: number[]) =>
      keep(fromArray(values, size, { dtype: "int32", device: x.device }));
    const offsets = (lengths: readonly number[]) => {
      const ends = Int32Array.from([0, ...lengths]);
      for (let i = 1; i < ends.length; i++) ends[i] = (ends[i] as number) + (ends[i - 1] as number);
      return int(ends, [ends.length]);
    };
    if (this.#offsets === null) {
      // one upload per pass, not one per layer
      const { chunks, starts, lengths } = chunkTables(promptLengths);
      this.#offsets = {
        prompt: offsets(promptLengths),
        group: offsets(perGroup),
        completion: offsets(completions),
        starts: int(starts, [chunks, promptLengths.length + 1]),
        lengths: int(lengths, [chunks, promptLengths.length]),
      };
    }
    const { prompt, group, completion, starts, lengths } = this.#offsets;
    return [
      ...[prompt, group, completion, starts, lengths],
      this.#promptRows,
      Math.max(...promptLengths),
      Math.max(0, ...perGroup),
      Math.max(0, ...completions),
      Math.max(...promptLengths.map((length) => Math.min(length, promptChunkKeys(length)))),
      x.size(2) ** -0.5,
    ];
  }

  #dense(q: Tensor, k: Tensor, v: Tensor): Tensor {
    const { promptLengths, completionLengths } = this.#segments;
    this.#masks ??= promptLengths.map((length, n) =>
      keep(noGrad(() => groupMask(length, completionLengths[n] ?? [], q.device))),
    );
    const prompts: Tensor[] = [];
    const completions: Tensor[] = [];
    let p = 0;
    let c = this.#promptRows;
    promptLengths.forEach((length, n) => {
      const rows = sum(completionLengths[n] ?? []);
      const prompt = [q, k, v].map((x) => slice(x, 0, p, p + length)) as [Tensor, Tensor, Tensor];
      prompts.push(sdpa(...prompt, null));
      if (rows > 0) {
        const own = [q, k, v].map((x) => slice(x, 0, c, c + rows)) as [Tensor, Tensor, Tensor];
        completions.push(
          sdpa(own[0], cat([prompt[1], own[1]], 0), cat([prompt[2], own[2]], 0), this.#masks?.[n] as Tensor),
        );
      }
      p += length;
      c += rows;
    });
    return cat([...prompts, ...completions], 0);
  }
}

/** Prompts only, causal inside each of them; `sink` receives every layer's keys and values [T, K, D], which it must copy to hold. */
export class PrefillPlan implements AttentionPlan, Disposable {
  readonly #packed: PackedPlan;
  readonly #sink: (layer: number, k: Tensor, v: Tensor) => void;

  constructor(promptLengths: readonly number[], sink: (layer: number, k: Tensor, v: Tensor) => void = () => {}) {
    this.#packed = new PackedPlan({ promptLengths, completionLengths: promptLengths.map(() => []) });
    this.#sink = sink;
  }

  attend(layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    this.#sink(layer, k, v);
    return this.#packed.attend(layer, q, k, v);
  }

  [Symbol.dispose](): void {
    this.#packed[Symbol.dispose]();
  }
}

/** q [Lq, H, D], k and v [Lk, K, D]; `mask` bool [Lq, Lk], or null for causal. */
function sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | null): Tensor {
  const heads = (x: Tensor) => unsqueeze(transpose(x, 0, 1), 0); // [1, heads, L, D]
  const options = mask === null ? { causal: true } : { mask };
  const out = scaledDotProductAttention(heads(q), heads(k), heads(v), {
    ...options,
    enableGqa: q.size(1) !== k.size(1),
  });
  return transpose(squeeze(out, 0), 0, 1);
}

/** Which keys [prompt | completions] each completion row of one group may see: bool [rows, promptLength + rows]. */
function groupMask(promptLength: number, completionLengths: readonly number[], device: Tensor["device"]): Tensor {
  const rows = sum(completionLengths);
  const width = promptLength + rows;
  const mask = new Uint8Array(rows * width);
  let start = 0;
  for (const length of completionLengths) {
    for (let i = start; i < start + length; i++) {
      mask.fill(1, i * width, i * width + promptLength);
      mask.fill(1, i * width + promptLength + start, i * width + promptLength + i + 1);
    }
    start += length;
  }
  return fromArray(mask, [rows, width], { dtype: "bool", device });
}

function isHalf(x: Tensor): boolean {
  return x.dtype === "bfloat16" || x.dtype === "float16";
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
