/** Operators of the vision tower's blocks, with and without adapters. Letters as in vision.ts. */

import { op } from "../../torch/dispatch.ts";
import { cat, layerNorm, reshape, scaledDotProductAttention, split, transpose } from "../../torch/ops.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { RopeTable } from "../rope.ts";
import type { Affine } from "./parameters.ts";

const linear = op("grove::linear");

export const quickGelu = op("grove::quick_gelu");

export const EPSILON = 1e-6; // of every LayerNorm in the tower

/** What the blocks need beside weights: patches as one tensor, their rotation, and runs of frames with equally many patches. */
export interface VisionBatch {
  pixels: Tensor; // [N, patchWidth]
  rope: RopeTable;
  runs: { frames: number; patches: number }[]; // patches per frame pair; rows are in this order
}

export function affine(x: Tensor, { weight, bias }: Affine): Tensor {
  return linear(x, weight, bias);
}

export function norm(x: Tensor, { weight, bias }: Affine): Tensor {
  return layerNorm(x, [x.size(-1)], weight, bias, EPSILON);
}

/** Every frame pair attends to itself: q, k, v [N, A, D] to [N, A, D]. Frames of equal size are one batch. */
export function frameAttention(q: Tensor, k: Tensor, v: Tensor, runs: VisionBatch["runs"]): Tensor {
  const [, A, D] = q.shape as [number, number, number];
  const attend = (run: VisionBatch["runs"][number], ...rows: Tensor[]) => {
    const [qf, kf, vf] = rows.map((x) => transpose(reshape(x, [run.frames, run.patches, A, D]), 1, 2)) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    return reshape(transpose(scaledDotProductAttention(qf, kf, vf), 1, 2), [run.frames * run.patches, A, D]);
  };
  if (runs.length === 1) return attend(runs[0] as VisionBatch["runs"][number], q, k, v);
  const sizes = runs.map(({ frames, patches }) => frames * patches);
  const [qs, ks, vs] = [q, k, v].map((x) => split(x, sizes, 0)) as [Tensor[], Tensor[], Tensor[]];
  return cat(
    runs.map((run, i) => attend(run, qs[i] as Tensor, ks[i] as Tensor, vs[i] as Tensor)),
    0,
  );
}
