/**
 * What a layer keeps for its backward at each level of recomputation, and what it computes again: plain arithmetic over a model's shape.
 *
 * To hold a value of a product costs 2 bytes in bfloat16 and saves 2 K FLOPs, K the width of what is multiplied: K FLOPs a byte, 3,584 for q, k, v, for
 * the sum behind attention and for gate and up of Qwen2-VL-7B, 18,944 for the layer's output. Attention's output saves 2 FLOPs a byte for each key
 * seen, about 1,000 to 20,000. A norm, a rotation, SwiGLU's product save a few FLOPs a byte, less than reading them back takes. So the latter go first
 * ("norms"); then gate and up ("mlp"), which save no more a byte than the other products and are half of everything; the rest, dear to compute and
 * small, stays until nothing does ("layer").
 *
 * Values of one text layer per token (src/model/qwen2vl/text.ts), X hidden, H and K heads of D, I intermediate:
 *
 *                                      none             norms           mlp             layer
 *   input                              X                X               X               X
 *   norm of it                         X                -               -               -
 *   q, k, v as projected               (H + 2 K) D      -               -               -      (a view of v holds all three)
 *   q, k rotated; v copied             (H + K) D        (H + 2 K) D     (H + 2 K) D     -      (a rotation's backward needs no values)
 *   attention's output                 H D              H D             H D             -      (and its log-sum-exp, H float32)
 *   sum behind attention               X                X               X               -
 *   norm of it                         X                -               -               -
 *   gate and up                        2 I              2 I             -               -      (SwiGLU's product is never kept)
 *   Qwen2-VL-7B in bfloat16, bytes     129,136          106,608         30,832          7,168
 *   of a forward's products, again     0                0               58 %            100 %  (and attention)
 *
 * and of one vision block per patch (vision.ts), E wide, MLP r E:
 *
 *   input, sum behind attention        2 E              2 E             2 E             E
 *   norms of them                      2 E              -               -               -
 *   q, k, v as projected               3 E              -               -               -
 *   q, k rotated; v copied             2 E              3 E             3 E             -
 *   attention's output                 E                E               E               -
 *   first product of the MLP           r E              r E             -               -
 *   its quick GELU                     r E or 2 r E     -               -               -      (two where ATen computes it: sigmoid and product)
 *   675M tower in bfloat16, bytes      46,144           25,664          15,424          2,560
 *   of a forward's products, again     0                0               33 %            100 %  (and attention)
 */

import { headDim, type Qwen2VLConfig } from "./qwen2vl/config.ts";
import type { Recompute } from "./tape.ts";

/** From the cheapest to compute to the smallest to hold. */
export const LEVELS: readonly Recompute[] = ["none", "norms", "mlp", "layer"];

/** Of one layer and one row (a token, a patch). */
export interface LayerCost {
  /** Values kept from the forward to the backward, in the model's dtype. */
  kept: number;
  /** Beside them float32 values: attention's log-sum-exp. */
  kept32: number;
  /** Values that the backward makes again and holds while it is at this layer. */
  made: number;
  /** FLOPs of products that are done again, attention's not counted. */
  flops: number;
  /** Values read and written again by what is no product. */
  moved: number;
}

/** Of the language model's layers, per token. */
export function textLayerCost(shape: Qwen2VLConfig, level: Recompute): LayerCost {
  const { hiddenSize: X, intermediateSize: I, numHeads: H, numKvHeads: K } = shape.text;
  const D = headDim(shape);
  const qkv = (H + 2 * K) * D;
  const all = 4 * X + qkv + (H + K) * D + H * D + 2 * I;
  const forward = 2 * (X * qkv + H * D * X + 3 * X * I);
  const norms = 2 * 2 * X + 2 * K * D; // both norms and the copy of v, each read and written
  const halves = 2 * X + qkv + H * D;
  return {
    none: { kept: all, kept32: H, made: 0, flops: 0, moved: 0 },
    norms: { kept: halves + 2 * I, kept32: H, made: X, flops: 0, moved: norms },
    mlp: { kept: halves, kept32: H, made: X + 2 * I, flops: 2 * 2 * I * X, moved: norms },
    layer: { kept: X, kept32: 0, made: all, flops: forward, moved: norms + 4 * X + 3 * I },
  }[level];
}

/** Of the vision tower's blocks, per patch. `fused`: quick GELU is a kernel of its own (CUDA in bfloat16). */
export function visionBlockCost(shape: Qwen2VLConfig, level: Recompute, fused: boolean): LayerCost {
  const { embedDim: E, mlpRatio: r, numHeads: H } = shape.vision;
  const all = (10 + (fused ? 2 : 3) * r) * E;
  const norms = 2 * 2 * E + 2 * E + 2 * r * E; // both norms, the copy of v, quick GELU
  return {
    none: { kept: all, kept32: H, made: 0, flops: 0, moved: 0 },
    norms: { kept: (6 + r) * E, kept32: H, made: 2 * r * E, flops: 0, moved: norms },
    mlp: { kept: 6 * E, kept32: H, made: (1 + 3 * r) * E, flops: 2 * r * E * E, moved: norms },
    layer: { kept: E, kept32: 0, made: all, flops: 2 * (4 + 2 * r) * E * E, moved: norms + 6 * E },
  }[level];
}

/** Of a layer or block with adapters: it keeps all, or is computed again as a whole. */
export const LORA_LEVELS: readonly Recompute[] = ["none", "layer"];

/**
 * Values that the adapters of one layer or block keep per row beside what it keeps without them: what is between their factors; with dropout, what is
 * left of each input and the mask. @param sites of one layer
 */
export function loraKept(
  sites: readonly { columns: number; modules: readonly unknown[] }[],
  { rank, dropout }: { rank: number; dropout: number },
): number {
  return sites.reduce(
    (kept, { columns, modules }) => kept + modules.length * rank + (dropout > 0 ? 2 * columns : 0),
    0,
  );
}
