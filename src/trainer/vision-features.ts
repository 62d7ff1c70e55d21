/** Features of the questions' pictures and videos by a tower that does not change: computed once a question, kept within a limit. */

import { mediaOf, type Packed } from "../model/packed.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import type { SamplerModel } from "../rollout/sampler-model.ts";
import { cat, detach, slice } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Prompt, VisionInput } from "../types.ts";
import { KEPT_FEATURES_BYTES } from "./activations.ts";

/** Where a medium's features are: rows of its question's. */
interface Place {
  question: string;
  media: readonly VisionInput[]; // of the question, in the order of its features
  row: number;
}

export class VisionFeatures implements Disposable {
  readonly #tower: Pick<Qwen2VL, "visionFeatures" | "config">;
  readonly #limit: number;
  readonly #places = new WeakMap<VisionInput, Place>();
  readonly #kept = new Map<string, Tensor>(); // by question, the one longest unused first
  #bytes = 0;

  constructor(tower: Pick<Qwen2VL, "visionFeatures" | "config">, limit = KEPT_FEATURES_BYTES) {
    this.#tower = tower;
    this.#limit = limit;
  }

  /** From now on these questions' features are kept once they are asked for; a question is known again by its record's place. */
  know(prompts: readonly Prompt[]): void {
    for (const prompt of prompts) {
      const { file, line, column = 0 } = prompt.sample.source;
      const media = mediaOf([prompt]);
      let row = 0;
      for (const input of media) {
        this.#places.set(input, { question: `${file}:${line}:${column}`, media, row });
        row += this.#rowsOf(input);
      }
    }
  }

  /**
   * As the model's visionFeatures: of any media, in order, [M, X]; belongs to the caller. Each question that is known goes through the tower by
   * itself, so that its features do not depend, by a rounding, on what else was asked for.
   */
  of(inputs: readonly VisionInput[]): Tensor {
    return scope(() => {
      const unknown = inputs.filter((input) => !this.#places.has(input));
      const others = unknown.length > 0 ? this.#tower.visionFeatures(unknown) : null;
      const questions = new Map<string, Tensor>(); // of this call: what is kept may be given up meanwhile
      let row = 0;
      const parts = inputs.map((input) => {
        const rows = this.#rowsOf(input);
        const place = this.#places.get(input);
        if (place !== undefined) {
          const features = questions.get(place.question) ?? this.#question(place);
          questions.set(place.question, features);
          return slice(features, 0, place.row, place.row + rows);
        }
        row += rows;
        return slice(others as Tensor, 0, row - rows, row);
      });
      return parts.length === 1 ? (parts[0] as Tensor) : cat(parts, 0);
    });
  }

  /** One entry a group, as a pass takes them. They belong to the caller. */
  ofPack({ groups }: Packed): (Tensor | null)[] {
    return groups.map(({ prompt }) => {
      const media = mediaOf([prompt]);
      return media.length === 0 ? null : this.of(media);
    });
  }

  /** The model with these features in place of its own. */
  serving(model: SamplerModel): SamplerModel {
    return {
      config: model.config,
      device: model.device,
      dtype: model.dtype,
      headDim: model.headDim,
      embed: (ids, features) => model.embed(ids, features),
      forward: (hidden, positions, plan) => model.forward(hidden, positions, plan),
      logits: (hidden) => model.logits(hidden),
      visionFeatures: (inputs) => this.of(inputs),
    };
  }

  /** Gives up what is kept. */
  clear(): void {
    for (const features of this.#kept.values()) features.free();
    this.#kept.clear();
    this.#bytes = 0;
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #question({ question, media }: Place): Tensor {
    const present = this.#kept.get(question);
    const features = present ?? keep(this.#tower.visionFeatures(media));
    this.#kept.delete(question);
    this.#kept.set(question, features);
    if (present === undefined) this.#bytes += bytesOf(features);
    const result = detach(features); // a handle of its own: the memory stays as long as the caller needs it
    for (const [oldest, tensor] of this.#kept) {
      if (this.#bytes <= this.#limit) break;
      this.#kept.delete(oldest);
      this.#bytes -= bytesOf(tensor);
      tensor.free();
    }
    return result;
  }

  #rowsOf({ grid: [t, h, w] }: VisionInput): number {
    return (t * h * w) / this.#tower.config.vision.spatialMergeSize ** 2;
  }
}

function bytesOf(features: Tensor): number {
  const size = { float64: 8, float32: 4 }[features.dtype as string] ?? 2;
  return features.numel * size;
}
