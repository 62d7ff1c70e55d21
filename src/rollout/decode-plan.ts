/**
 * Attention of one new token per completion. The group's queries are multiplied with their shared prompt as one matrix of G * R rows
 * (R query heads per key/value head), with their own tokens one completion at a time; both score blocks go through one softmax, so
 * the result is exact. Letters as in kv-cache.ts; B = Q * G completions, H = HK * R query heads.
 */

import type { AttentionPlan } from "../model/attention.ts";
import { op } from "../torch/dispatch.ts";
import { bmm, cast, cat, fill_, reshape, slice, softmax, transpose, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { DType, Tensor } from "../torch/tensor.ts";
import type { KvCache } from "./kv-cache.ts";

const baddbmm = op("aten::baddbmm");
const baddbmmInto = op("aten::baddbmm.dtype"); // half-precision factors, float32 sum; CUDA only
const indexFill_ = op("aten::index_fill_.int_Scalar");

export interface DecodePlanOptions {
  /**
   * Slot of the newest token, int64 [1] on the cache's device. The plan reads it, whoever runs the steps advances it.
   */
  step: Tensor;
  /** Element type of the model's q, k and v; where the cache has another, they are converted. */
  dtype: DType;
  /** Always reads all N own slots, under a mask that lives on the device: every step is the same sequence of kernels. */
  staticShapes: boolean;
}

export class DecodePlan implements AttentionPlan, Disposable {
  private readonly cache: KvCache;
  private readonly step: Tensor;
  /** -infinity for own slots that hold no token yet, float32 [1, 1, N]; a scalar that counts for nothing with shapes that grow. */
  private readonly ownMask: Tensor;
  private readonly staticShapes: boolean;
  private readonly dtype: DType;
  private ownLength = 0;

  constructor(cache: KvCache, options: DecodePlanOptions) {
    this.cache = cache;
    this.step = options.step;
    this.staticShapes = options.staticShapes;
    this.dtype = options.dtype;
    const device = options.step.device;
    const slots = options.staticShapes ? cache.shape.ownSlots : 1;
    this.ownMask = keep(zeros([1, 1, slots], { dtype: "float32", device }));
    this.reset();
  }

  /** Forgets the completions' own tokens. */
  reset(): void {
    this.ownLength = 0;
    if (this.staticShapes) fill_(this.ownMask, Number.NEGATIVE_INFINITY);
  }

  /** Opens the slot of the next token; called once before the layers of a step. */
  beginStep(): void {
    if (this.staticShapes) scope(() => void indexFill_(this.ownMask, 2, this.step, 0));
    else this.ownLength++;
  }

  /** q [B, H, D], k and v [B, HK, D], rotated; returns [B, H, D]. */
  attend(layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    const { questions: Q, group: G, kvHeads: HK, headDim: D, promptSlots: P, ownSlots: N } = this.cache.shape;
    const B = Q * G;
    const R = q.size(1) / HK;
    const scale = D ** -0.5;
    const stored = this.cache.dtype;
    const toCache = (x: Tensor) => (this.dtype === stored ? x : cast(x, stored));
    this.cache.writeOwn(layer, this.step, toCache(k), toCache(v));
    const slots = this.staticShapes ? N : this.ownLength;
    const view = (buffer: Tensor, size: number) => reshape(buffer, [-1, size, D]);
    const own = (buffer: Tensor) => slice(view(buffer, N), 1, 0, slots);

    const rows = reshape(transpose(reshape(toCache(q), [Q, G, HK, R, D]), 1, 2), [Q * HK, G * R, D]);
    const promptK = transpose(view(this.cache.promptK[layer] as Tensor, P), 1, 2);
    const ownK = transpose(own(this.cache.ownK[layer] as Tensor), 1, 2);
    const promptScores = this.scores(this.cache.promptMask, rows, promptK, 1, scale);
    const ownScores = this.scores(this.ownMask, reshape(rows, [B * HK, R, D]), ownK, this.staticShapes ? 1 : 0, scale);

    const scores = cat([reshape(promptScores, [-1, P]), reshape(ownScores, [-1, slots])], 1);
    const weights = stored === "float32" ? softmax(scores, 1) : cast(softmax(scores, 1), stored);
    const promptWeights = reshape(slice(weights, 1, 0, P), [Q * HK, G * R, P]);
    const ownWeights = reshape(slice(weights, 1, P, P + slots), [B * HK, R, slots]);
    const fromPrompt = bmm(promptWeights, view(this.cache.promptV[layer] as Tensor, P));
    const mixed = baddbmm(reshape(fromPrompt, [B * HK, R, D]), ownWeights, own(this.cache.ownV[layer] as Tensor));
    const out = reshape(transpose(reshape(mixed, [Q, HK, G, R * D]), 1, 2), [B, HK * R, D]);
    return this.dtype === stored ? out : cast(out, this.dtype);
  }

  [Symbol.dispose](): void {
    this.ownMask.free();
  }

  /** scale * rows keys + beta * mask in float32. rows [n, m, D], keys [n, D, slots], mask broadcastable to [n, m, slots]. */
  private scores(mask: Tensor, rows: Tensor, keys: Tensor, beta: number, scale: number): Tensor {
    if (this.cache.dtype === "float32") return baddbmm(mask, rows, keys, beta, scale);
    return baddbmmInto(mask, rows, keys, "float32", beta, scale);
  }
}
