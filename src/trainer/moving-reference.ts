/**
 * A reference policy that follows the policy: every trainer.referenceEvery steps decay * reference + (1 - decay) * policy. With decay 0 it is replaced,
 * with 0.995 and 10 it is GRPO-CARE's (arXiv:2506.16141); TRL's ref_model_mixup_alpha is 1 - decay (TR-DPO, arXiv:2404.09656).
 * It is part of a run's state then: a checkpoint has it in `reference/`.
 */

import { existsSync } from "node:fs";
import path from "node:path";
import type { Config } from "../config/schema.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { hash64 } from "../random.ts";
import { noGrad } from "../torch/autograd.ts";
import { op } from "../torch/dispatch.ts";
import { add_, cast, copy_, lerp_, mul, rand, reshape, slice, viewDtype } from "../torch/ops.ts";
import { Generator } from "../torch/random.ts";
import { scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { loadModel } from "./assemble.ts";
import { type CheckpointFile, tensorFile } from "./checkpoint.ts";
import { latestCheckpoint } from "./checkpoint-folder.ts";
import { openReference, type Session } from "./session.ts";

const FOLDER = "reference";
/** Elements that are worked on at a time, so that float32 copies of a large matrix never exist. */
const SLICE = 2 ** 24;

const bitwiseAnd_ = op("aten::bitwise_and_.Scalar");

/** The reference as it was at the checkpoint that a run goes on from; at its first step, and where the run had none that moves, what it began with. */
export function openMovingReference(session: Session): Qwen2VL {
  const { config, firstStep } = session;
  const checkpoint = firstStep === 0 ? undefined : latestCheckpoint(config.runDir);
  const folder = checkpoint === undefined ? undefined : path.join(checkpoint, FOLDER);
  return folder !== undefined && existsSync(folder) ? loadModel(folder, config) : openReference(session);
}

/** The reference's part of a checkpoint. */
export function referenceFiles(reference: Qwen2VL): CheckpointFile[] {
  const { weights, texts } = reference.folderContent();
  return [
    ...weights.map(({ name, tensors }) => tensorFile(`${FOLDER}/${name}`, tensors)),
    ...texts.map(({ name, text }) => ({ name: `${FOLDER}/${name}`, bytes: Buffer.from(text) })),
  ];
}

/** Whether the reference is updated when so many steps are made. */
export function isReferenceDue(stepsDone: number, { referenceEvery }: Config["trainer"]): boolean {
  return referenceEvery > 0 && stepsDone % referenceEvery === 0;
}

/**
 * Moves the reference towards the policy, in place: the same on all ranks. Bfloat16 weights are rounded at random, up or down by how near each is: the
 * steps of an average are far smaller than the distance of two such numbers and would all be lost to rounding to the nearest.
 */
export function moveReference(
  reference: readonly Parameter[],
  policy: readonly Parameter[],
  { decay, seed, step }: { decay: number; seed: number; step: number },
): void {
  for (const [i, { name, tensor }] of reference.entries()) {
    scope(() =>
      noGrad(() => {
        const target = (policy[i] as Parameter).tensor;
        if (decay === 0) copy_(tensor, target);
        else if (tensor.dtype !== "bfloat16") lerp_(tensor, target, 1 - decay);
        else {
          using generator = new Generator(hash64(seed, "reference", step, name)[0], tensor.device);
          moveRounded(reshape(tensor, [-1]), reshape(target, [-1]), 1 - decay, generator);
        }
      }),
    );
  }
}

/** x += share * (y - x) for bfloat16 [N], rounded at random. */
function moveRounded(x: Tensor, y: Tensor, share: number, generator: Generator): void {
  for (let begin = 0; begin < x.numel; begin += SLICE) {
    scope(() => {
      const part = (flat: Tensor) => slice(flat, 0, begin, Math.min(flat.numel, begin + SLICE));
      const exact = lerp_(cast(part(x), "float32"), cast(part(y), "float32"), share);
      // The lower 16 bits, which bfloat16 lacks, plus a number below 2^16 carry into the upper ones as often as they are near the next number.
      const noise = cast(mul(rand(exact.shape, { generator, device: x.device }), 2 ** 16), "int32");
      bitwiseAnd_(add_(viewDtype(exact, "int32"), noise), -(2 ** 16));
      copy_(part(x), exact);
    });
  }
}
