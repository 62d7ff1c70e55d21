/**
 * A reference policy that follows the policy: every trainer.referenceEvery steps decay * reference + (1 - decay) * policy. With decay 0 it is replaced,
 * with 0.995 and 10 it is GRPO-CARE's (arXiv:2506.16141); TRL's ref_model_mixup_alpha is 1 - decay (TR-DPO, arXiv:2404.09656).
 * It is part of a run's state then: a checkpoint has it in `reference/`.
 */

import { existsSync } from "node:fs";
import path from "node:path";
import type { Config } from "../config/schema.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { hash64 } from "../random.ts";
import { noGrad } from "../torch/autograd.ts";
import { op } from "../torch/dispatch.ts";
import { clone, copy_, lerp_, reshape, slice, to } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { openParts } from "./assemble.ts";
import { type CheckpointFile, tensorFile } from "./checkpoint.ts";
import { latestCheckpoint } from "./checkpoint-folder.ts";
import { SavedState, stateFiles } from "./saved-state.ts";
import type { Session } from "./session.ts";
import type { OwnPart } from "./sharded-weights.ts";

const FOLDER = "reference";

const movingAverage_ = op("grove::moving_average_");

/**
 * The reference of the checkpoint that a run goes on from, a part of the model after the other, whoever wrote it; they are the caller's. Null where
 * there is none.
 * @throws CheckpointError when something of it is missing
 */
export function savedReference({ config, firstStep, model }: Session): Generator<Parameter[]> | null {
  const checkpoint = firstStep === 0 ? undefined : latestCheckpoint(config.runDir);
  if (checkpoint === undefined) return null;
  const folder = path.join(checkpoint, FOLDER);
  if (existsSync(folder)) {
    const { adapter: _merged, ...model } = config.model; // into what was saved, long ago
    return openParts({ ...config, model: { ...model, path: folder, init: "pretrained" } });
  }
  return stateFiles(checkpoint, "reference").length === 0 ? null : joinedParts(checkpoint, model.parameters);
}

/** From the files of several ranks. */
function* joinedParts(checkpoint: string, like: readonly Parameter[]): Generator<Parameter[]> {
  using saved = new SavedState(checkpoint, "reference");
  for (const { name, parts, tensor } of like) {
    const whole = scope(() => {
      const found = saved.read({ name, tensor, begin: 0, end: tensor.numel, isWhole: true });
      return found && keep(clone(to(found, { device: tensor.device })));
    });
    if (whole === undefined) throw new CheckpointError(checkpoint, `lacks a part of the reference's ${name}`);
    yield [{ name, parts, tensor: whole }];
  }
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

/** How far: to `decay` of what it is and the rest of the policy; `seed` and `step` (from 0) name the draws. */
export interface Move {
  decay: number;
  seed: number;
  step: number;
}

/**
 * Moves the reference towards the policy, in place: the same on all ranks. Bfloat16 weights are rounded at random, up or down by how near each is: the
 * steps of an average are far smaller than the distance of two such numbers and would all be lost to rounding to the nearest.
 */
export function moveReference(
  reference: readonly Parameter[],
  policy: readonly Parameter[],
  { decay, seed, step }: Move,
): void {
  const parts = reference.map(({ name, tensor }): MovingPart => {
    return { name, begin: 0, end: tensor.numel, own: () => reshape(tensor, [-1]) };
  });
  moveParts(parts, policy, { decay, seed, step });
}

/** Elements [begin, end) of the parameter of this name; `own` [end - begin] is a view of them. */
export type MovingPart = Pick<OwnPart, "name" | "begin" | "end" | "own">;

/** As moveReference() for parts of it: each element becomes what it would become among all. */
export function moveParts(
  parts: readonly MovingPart[],
  policy: readonly Parameter[],
  { decay, seed, step }: Move,
): void {
  const targets = new Map(policy.map(({ name, tensor }) => [name, tensor]));
  for (const { name, begin, end, own } of parts) {
    scope(() =>
      noGrad(() => {
        const x = own();
        const y = slice(reshape(targets.get(name) as Tensor, [-1]), 0, begin, end);
        if (decay === 0) copy_(x, y);
        else if (x.dtype !== "bfloat16") lerp_(x, y, 1 - decay);
        else movingAverage_(x, y, 1 - decay, ...hash64(seed, "reference", name), begin, step);
      }),
    );
  }
}
