/** The reference policy where each rank has all of its weights. */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Ranks } from "../distributed/ranks.ts";
import type { Packed } from "../model/packed.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { noGrad } from "../torch/autograd.ts";
import { clone, copy_ } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { openModel } from "./assemble.ts";
import { type CheckpointFile, fingerprint } from "./checkpoint.ts";
import { questionsRecur, towerFingerprint } from "./feature-sources.ts";
import { type Move, moveReference, referenceFiles, savedReference } from "./moving-reference.ts";
import type { Reference } from "./reference.ts";
import { requireStartWeights, type Session } from "./session.ts";
import { VisionFeatures } from "./vision-features.ts";

class ResidentReference implements Reference {
  readonly features: VisionFeatures | null;
  readonly #own: VisionFeatures | null; // of its own tower, kept where questions recur
  readonly #model: Qwen2VL;
  readonly #ranks: Ranks;

  constructor(session: Session, model: Qwen2VL) {
    const { features: shared, model: policy } = session;
    const isSame = shared !== null && towerFingerprint(policy.parameters) === towerFingerprint(model.parameters);
    this.#model = model;
    this.#ranks = session.ranks;
    this.#own = !isSame && questionsRecur(session) ? new VisionFeatures(model) : null;
    this.features = isSame ? shared : this.#own;
  }

  async logprobs(packs: readonly Packed[]): Promise<Tensor[]> {
    const logprobs: Tensor[] = [];
    for (const packed of packs) {
      scope(() => {
        using pass = this.#model.pass(packed, { grad: false, visionCache: this.features?.ofPack(packed) });
        logprobs.push(keep(clone(pass.logprobs)));
      });
      await nextTurn(); // lets signals, prefetching and logs have their turn
    }
    return logprobs;
  }

  move(policy: readonly Parameter[], how: Move): void {
    moveReference(this.#model.parameters, policy, how);
    this.#own?.clear(); // its tower has moved; the policy's frozen one has not
  }

  files(): CheckpointFile[] {
    return this.#ranks.isFirst ? referenceFiles(this.#model) : [];
  }

  [Symbol.dispose](): void {
    this.#own?.[Symbol.dispose]();
    this.#model[Symbol.dispose]();
  }
}

/** @throws CheckpointError when the weights at model.path are no longer those the run started from. */
export function openResidentReference(session: Session): ResidentReference {
  const model = (session.config.trainer.referenceEvery > 0 && movedModel(session)) || startModel(session);
  try {
    return new ResidentReference(session, model);
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

/**
 * The model as it was before the first step: a copy of the policy in a new run, read or drawn again in a resumed one. Of a policy with an adapter it is
 * the model without it, in the same memory.
 */
function startModel(session: Session): Qwen2VL {
  const { config, model, firstStep } = session;
  if (model.adapter !== null) return model.withoutAdapter();
  const start = firstStep === 0 ? model.clone() : openModel(config);
  try {
    requireStartWeights(session, fingerprint(start.parameters));
  } catch (error) {
    start[Symbol.dispose]();
    throw error;
  }
  return start;
}

/** The reference of the checkpoint that the run goes on from; null where it has none. */
function movedModel(session: Session): Qwen2VL | null {
  const saved = savedReference(session);
  if (saved === null) return null;
  const model = session.model.clone();
  try {
    const own = new Map(model.parameters.map(({ name, tensor }) => [name, tensor]));
    for (const parameters of saved) {
      for (const { name, tensor } of parameters) {
        noGrad(() => copy_(own.get(name) as Tensor, tensor));
        tensor.free();
      }
    }
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
  return model;
}
