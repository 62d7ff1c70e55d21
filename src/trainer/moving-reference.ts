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
import { add_, cast, clone, copy_, lerp_, mul, rand, reshape, slice, to, viewDtype } from "../torch/ops.ts";
import { Generator as RandomGenerator } from "../torch/random.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { openParts } from "./assemble.ts";
import { type CheckpointFile, tensorFile } from "./checkpoint.ts";
import { latestCheckpoint } from "./checkpoint-folder.ts";
import { SavedState, stateFiles } from "./saved-state.ts";
import type { Session } from "./session.ts";
import type { OwnPart } from "./sharded-weights.ts";

const FOLDER = "reference";
/** Elements that are worked on at a time, so that float32 copies of a large matrix never exist. */
const SLICE = 2 ** 24;

const bitwiseAnd_ = op("aten::bitwise_and_.Scalar");

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
        else {
          using generator = new RandomGenerator(hash64(seed, "reference", step, name)[0], x.device);
          moveRounded(x, y, 1 - decay, { begin, numel: (targets.get(name) as Tensor).numel }, generator);
        }
      }),
    );
  }
}

/**
 * x += share * (y - x) for bfloat16 [N], rounded at random: elements from `begin` on of a parameter of `numel`. The draws are those of the whole
 * parameter, of which the part takes its own.
 */
function moveRounded(
  x: Tensor,
  y: Tensor,
  share: number,
  { begin, numel }: { begin: number; numel: number },
  generator: RandomGenerator,
): void {
  const end = begin + x.numel;
  for (let first = 0; first < end; first += SLICE) {
    scope(() => {
      const drawn = Math.min(numel, first + SLICE) - first;
      const draws = rand([drawn], { generator, device: x.device });
      const [from, to] = [Math.max(begin, first), Math.min(end, first + drawn)];
      if (from >= to) return; // another rank's
      const part = (flat: Tensor) => slice(flat, 0, from - begin, to - begin);
      const exact = lerp_(cast(part(x), "float32"), cast(part(y), "float32"), share);
      // The lower 16 bits, which bfloat16 lacks, plus a number below 2^16 carry into the upper ones as often as they are near the next number.
      const noise = cast(mul(slice(draws, 0, from - first, to - first), 2 ** 16), "int32");
      bitwiseAnd_(add_(viewDtype(exact, "int32"), noise), -(2 ** 16));
      copy_(part(x), exact);
    });
  }
}
