/**
 * The vision tower of Qwen2-VL: a linear map of each 14 x 14 x 2 patch, pre-norm transformer blocks with 2-D rotary positions whose
 * patches attend within their own frame pair only, and a merger of 2 x 2 patches into one feature of the language model's width.
 *
 * Shapes: N patches, E embedding size, A heads, D head size, M merged features, X the language model's hidden size.
 */

import { ShapeError } from "../../errors.ts";
import { op, opN } from "../../torch/dispatch.ts";
import { add, cat, gelu, reshape } from "../../torch/ops.ts";
import { scope } from "../../torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../torch/tensor.ts";
import type { VisionInput } from "../../types.ts";
import { type Rope, rotateCut } from "../rope.ts";
import type { Recompute, Step } from "../tape.ts";
import { patchWidth, type Qwen2VLConfig } from "./config.ts";
import { loraVisionBlock } from "./lora-layers.ts";
import { type Affine, PARTS, type VisionBlockWeights, type VisionWeights } from "./parameters.ts";
import { affine, EPSILON, frameAttention, norm, quickGelu, type VisionBatch } from "./vision-ops.ts";

const linear = op("grove::linear");
const normLinear = opN("grove::norm_linear");
const quickGeluLinear = op("grove::quick_gelu_linear");
const quickGeluMlp = op("grove::quick_gelu_mlp");

/**
 * Uploads media, in order. The tensors belong to the caller.
 * @throws ShapeError when pixels do not fit their grid, or a grid does not divide by the merge size.
 */
export function visionBatch(
  inputs: readonly VisionInput[],
  config: Qwen2VLConfig,
  rope: Rope,
  options: { device: Device; dtype: DType },
): VisionBatch {
  const width = patchWidth(config);
  const merge = config.vision.spatialMergeSize;
  const total = inputs.reduce((sum, { grid: [t, h, w] }) => sum + t * h * w, 0);
  const positions = new Int32Array(2 * total);
  const runs: VisionBatch["runs"] = [];
  let row = 0;
  for (const { pixels, grid } of inputs) {
    const [t, h, w] = grid;
    if (h % merge !== 0 || w % merge !== 0)
      throw new ShapeError("vision", `a grid whose height and width divide by ${merge}`, grid);
    if (pixels.length !== t * h * w * width)
      throw new ShapeError("vision", `${t * h * w} patches of ${width} values for the grid [${grid}]`, [pixels.length]);
    const last = runs.at(-1);
    if (last?.patches === h * w) last.frames += t;
    else runs.push({ frames: t, patches: h * w });
    row = placePatches(grid, merge, positions, row, total);
  }
  return {
    pixels: scope(() => cat(inputs.map(({ pixels }) => fromArray(pixels, [pixels.length / width, width], options)))),
    // rotated in float32 in 16-bit models too, as transformers does it
    rope: rope.table(positions, options.dtype === "float64" ? "float64" : "float32"),
    runs,
  };
}

/**
 * Patches [N, patchWidth] to features [M, X], in steps: the patch embedding, each block, the merger.
 * @param dropout of adapters: a word for each patch, int32 [N]; null: nothing is dropped
 */
export function visionTower(
  batch: VisionBatch,
  weights: VisionWeights,
  config: Qwen2VLConfig,
  step: Step,
  recompute: Recompute = "none",
  dropout: Tensor | null = null,
): Tensor {
  let hidden = step(null, () => linear(batch.pixels, weights.patchEmbed, null), PARTS.patchEmbed); // [N, E]
  const advance = (part: string, run: (input: Tensor) => Tensor) => {
    const next = step(hidden, (input) => run(input as Tensor), part);
    hidden.free();
    hidden = next;
  };
  for (const [i, block] of weights.blocks.entries())
    advance(PARTS.block(i), (x) =>
      block.lora === undefined
        ? visionBlock(x, block, config, batch, recompute)
        : loraVisionBlock(x, block, block.lora, config, batch, dropout),
    );
  advance(PARTS.merger, (x) => mergePatches(x, weights, config));
  return hidden;
}

/** x [N, E] to [N, E]. `recompute` changes what its graph keeps (model/recompute.ts), not a bit of what comes out. */
function visionBlock(
  x: Tensor,
  weights: VisionBlockWeights,
  config: Qwen2VLConfig,
  { rope, runs }: VisionBatch,
  recompute: Recompute,
): Tensor {
  const { embedDim: E, numHeads: A } = config.vision;
  const N = x.size(0);
  const D = E / A;
  const selective = recompute === "norms" || recompute === "mlp";
  const [projected, fork] = normAffine(x, weights.norm1, weights.qkv, !selective);
  const qkv = reshape(projected, [N, 3 * A, D]);
  const attended = reshape(frameAttention(...rotateCut(qkv, rope, A, selective), runs), [N, E]);
  const h = add(fork, affine(attended, weights.proj));
  const { norm2, fc1, fc2 } = weights;
  if (recompute === "mlp")
    return quickGeluMlp(h, norm2.weight, norm2.bias, EPSILON, fc1.weight, fc1.bias, fc2.weight, fc2.bias);
  const [up, fork2] = normAffine(h, norm2, fc1, !selective);
  return add(fork2, selective ? quickGeluLinear(up, fc2.weight, fc2.bias) : affine(quickGelu(up), fc2));
}

/** merge x merge neighbouring patches, which are consecutive rows, become one feature: [N, E] to [M, X]. */
function mergePatches(x: Tensor, weights: VisionWeights, config: Qwen2VLConfig): Tensor {
  const merged = config.vision.spatialMergeSize ** 2;
  const rows = reshape(norm(x, weights.mergerNorm), [x.size(0) / merged, config.vision.embedDim * merged]);
  return affine(gelu(affine(rows, weights.merger1), "none"), weights.merger2);
}

/** Writes (h, w) of every patch of a grid from `row` on, patches ordered by (t, h / merge, w / merge, h % merge, w % merge). */
function placePatches(
  grid: VisionInput["grid"],
  merge: number,
  positions: Int32Array,
  row: number,
  total: number,
): number {
  const [t, h, w] = grid;
  for (let frame = 0; frame < t; frame++) {
    for (let y = 0; y < h; y += merge) {
      for (let x = 0; x < w; x += merge) {
        for (let i = 0; i < merge * merge; i++, row++) {
          positions[row] = y + Math.floor(i / merge);
          positions[total + row] = x + (i % merge);
        }
      }
    }
  }
  return row;
}

/** affine(norm(x)), and x again for its residual: so both of its gradients meet in the norm's backward. `keep` the norm for it. */
function normAffine(x: Tensor, first: Affine, then: Affine, keep: boolean): [product: Tensor, x: Tensor] {
  return normLinear(x, first.weight, first.bias, EPSILON, then.weight, then.bias, keep) as [Tensor, Tensor];
}
