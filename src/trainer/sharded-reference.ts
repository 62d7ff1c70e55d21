/** The reference policy where its weights are cut over the ranks (distributed.shardReference). */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Ranks } from "../distributed/ranks.ts";
import { mediaOf, type Packed } from "../model/packed.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { type ModelOptions, Qwen2VL } from "../model/qwen2vl/model.ts";
import { byPart, PARTS, parameterSpecs, partOf } from "../model/qwen2vl/parameters.ts";
import type { TensorEntry } from "../model/safetensors.ts";
import { clone, reshape } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { DType, Tensor } from "../torch/tensor.ts";
import { openParts } from "./assemble.ts";
import { type CheckpointFile, fingerprint, tensorFile } from "./checkpoint.ts";
import { towerFingerprint } from "./feature-sources.ts";
import { type Move, moveParts, savedReference } from "./moving-reference.ts";
import type { Reference } from "./reference.ts";
import { savedName, stateFile } from "./saved-state.ts";
import { requireStartWeights, type Session } from "./session.ts";
import { ShardedWeights } from "./sharded-weights.ts";
import type { VisionFeatures } from "./vision-features.ts";

export class ShardedReference implements Reference {
  features: VisionFeatures | null = null; // see shareFeatures
  readonly #ranks: Ranks;
  readonly #weights: ShardedWeights;
  readonly #model: Qwen2VL; // whose weights are there while a pass is at them
  readonly #parts: { vision: string[]; text: string[] };
  readonly #dtype: DType;
  #whole = "0"; // fingerprints of what has been filled in
  #tower = "0";

  constructor(config: Qwen2VLConfig, ranks: Ranks, options: ModelOptions) {
    const specs = parameterSpecs(config);
    this.#ranks = ranks;
    this.#dtype = options.dtype;
    this.#weights = new ShardedWeights(specs, ranks, options);
    this.#model = Qwen2VL.over(config, this.#weights.parameters, options);
    const parts = byPart(specs).map(([first]) => partOf(first?.name ?? ""));
    const text = parts.indexOf(PARTS.embedding);
    this.#parts = { vision: parts.slice(0, text), text: parts.slice(text) };
  }

  /** Takes this rank's share of whole parameters, all of which come once, in their order. Returns the fingerprint of those that have come. */
  fill(parameters: readonly Parameter[]): string {
    this.#weights.fill(parameters);
    this.#tower = towerFingerprint(parameters, this.#tower);
    this.#whole = fingerprint(parameters, this.#whole);
    return this.#whole;
  }

  /** Each rank's part becomes what it would be if one rank had all. */
  move(policy: readonly Parameter[], how: Move): void {
    moveParts(this.#weights.parts(), policy, how);
    this.#weights.changed();
  }

  files(): CheckpointFile[] {
    const tensors = this.#weights.parts().map(({ name, shape, begin, end, own }): TensorEntry => {
      const isWhole = end - begin === shape.reduce((a, b) => a * b, 1);
      const read = () => (isWhole ? reshape(own(), [...shape]) : own());
      const saved = { name: savedName({ name, isWhole, begin, end }), shape: isWhole ? [...shape] : [end - begin] };
      return { ...saved, dtype: this.#dtype, read };
    });
    return [tensorFile(stateFile(this.#ranks, "reference"), tensors)];
  }

  /** From now on passes take the policy's features, where its tower is frozen and the same; else each computes its own, as the ranks' passes have to keep step. */
  shareFeatures({ features, model }: Pick<Session, "features" | "model">): void {
    this.features = features !== null && towerFingerprint(model.parameters) === this.#tower ? features : null;
  }

  /** A rank with fewer packs than another takes part in gathering weights for it. */
  async logprobs(packs: readonly Packed[]): Promise<Tensor[]> {
    const own = packs.map(
      ({ groups }) => this.features === null && mediaOf(groups.map(({ prompt }) => prompt)).length > 0,
    );
    const seeing = this.#ranks.gather(own); // of each rank, which passes go through the tower
    const rounds = Math.max(...seeing.map(({ length }) => length));
    const { vision, text } = this.#parts;
    const logprobs: Tensor[] = [];
    for (let round = 0; round < rounds; round++) {
      this.#weights.begin(seeing.some((passes) => passes[round] === true) ? [...vision, ...text] : text);
      const packed = packs[round];
      if (packed !== undefined) logprobs.push(this.#pass(packed));
      this.#weights.end();
      await nextTurn(); // lets signals, prefetching and logs have their turn
    }
    return logprobs;
  }

  #pass(packed: Packed): Tensor {
    return scope(() => {
      const options = { grad: false, visionCache: this.features?.ofPack(packed), watch: this.#weights };
      using pass = this.#model.pass(packed, options);
      return keep(clone(pass.logprobs));
    });
  }

  [Symbol.dispose](): void {
    this.#model[Symbol.dispose]();
    this.#weights[Symbol.dispose]();
  }
}

/**
 * The model as it was before the first step, of which each rank keeps its part: of the policy in a new run; read or drawn again in a resumed one, or, where it
 * moves, read from the checkpoint; a part of the model at a time, so that no rank ever holds it whole.
 * @throws CheckpointError when the weights at model.path are no longer those the run started from.
 */
export function openShardedReference(session: Session): ShardedReference {
  const { config, model, ranks, firstStep } = session;
  const reference = new ShardedReference(model.config, ranks, model);
  try {
    if (firstStep === 0) {
      requireStartWeights(session, reference.fill(model.parameters));
    } else {
      const moved = config.trainer.referenceEvery > 0 ? savedReference(session) : null;
      let found = "";
      for (const parameters of moved ?? openParts(config)) {
        found = reference.fill(parameters);
        for (const { tensor } of parameters) tensor.free();
      }
      if (moved === null) requireStartWeights(session, found);
    }
    reference.shareFeatures(session);
  } catch (error) {
    reference[Symbol.dispose]();
    throw error;
  }
  return reference;
}
