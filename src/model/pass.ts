/**
 * One pass of a pack through a Qwen2-VL: log-probabilities of all completion tokens and, on demand, gradients of any function of them.
 *
 * Every prompt and its media go through the model once, whatever the number of completions. The backward walks layer by layer (Tape), from
 * the head over the language model and the embedding into the vision tower, and adds to `parameter.tensor.grad`.
 */

import { invariant, ShapeError } from "../errors.ts";
import { noGrad } from "../torch/autograd.ts";
import { cat, indexSelect, slice } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../torch/tensor.ts";
import { PackedPlan } from "./attention.ts";
import { ChunkedLogprobs } from "./lm-head.ts";
import { mediaOf, type Packed } from "./packed.ts";
import type { Qwen2VLConfig } from "./qwen2vl/config.ts";
import { PARTS, type TextWeights, type VisionWeights } from "./qwen2vl/parameters.ts";
import { embedTokens, textLayers } from "./qwen2vl/text.ts";
import { rmsNorm } from "./qwen2vl/text-ops.ts";
import { visionBatch, visionTower } from "./qwen2vl/vision.ts";
import type { Rope } from "./rope.ts";
import { type PartWatch, plainStep, type Recompute, type Step, Tape, watched } from "./tape.ts";

export interface PassOptions {
  /** Whether backward() will be called. */
  grad: boolean;
  /** What the backward computes again instead of finding it kept, for both parts of the model or for each. Default: nothing. */
  recompute?: Recompute | RecomputePlan | undefined;
  /** No gradients for the vision tower. */
  freezeVision?: boolean | undefined;
  /** Features per group (its images in order, then its videos), as visionFeatures(mediaOf([prompt])) gives them; implies freezeVision. */
  visionCache?: readonly (Tensor | null)[] | undefined;
  /** What the dropout of adapters, where they have one, drops in this pass; default: nothing. */
  dropout?: DropoutWords | undefined;
  /**
   * Told which part's weights the forward comes to and is done with, from the patch embedding to the head, for weights that are not always there. A
   * backward needs them too: not with grad.
   */
  watch?: PartWatch | undefined;
  /** `dense` attends by masks instead of the fused op: slow, the reference in tests. */
  attention?: "auto" | "fused" | "dense" | undefined;
}

/** A word for every row of a pass, from which an adapter's masks of that row follow. */
export interface DropoutWords {
  text: Int32Array; // of each token, [T]
  vision: Int32Array; // of each patch, [N], in the order of the pack's media (mediaOf)
}

/** By part of the model. The results are the same bits whatever it says. */
export interface RecomputePlan {
  text: Recompute;
  vision: Recompute;
}

/** The parts of a model that a pass reads. */
export interface PassModel {
  config: Qwen2VLConfig;
  device: Device;
  dtype: DType;
  text: TextWeights;
  vision: VisionWeights;
  textRope: Rope;
  visionRope: Rope;
  /** Parts with weights or adapters that want gradients. */
  trained: ReadonlySet<string>;
}

/** Tc completion tokens in the order of `pack.targets`. Frees what it holds on dispose; the caller must dispose it, after backward if any. */
export class PackedPass implements Disposable {
  /** log p(token | everything before it), nats, float32 [Tc] (float64 in a float64 model). */
  readonly logprobs: Tensor;
  /** Entropy of the distribution each token was taken from, nats, like logprobs. */
  readonly entropy: Tensor;
  readonly #head: ChunkedLogprobs;
  readonly #tape: Tape | null;
  readonly #owned: Disposable[] = [];
  readonly #isTied: boolean;
  #walked = false;

  constructor(model: PassModel, pack: Packed, options: PassOptions) {
    this.#tape = options.grad ? new Tape() : null;
    this.#isTied = model.config.tieWordEmbeddings;
    try {
      this.#head = scope(() => this.#forward(model, pack, options));
    } catch (error) {
      this.#release();
      throw error;
    }
    this.logprobs = this.#head.logprobs;
    this.entropy = this.#head.entropy;
  }

  /**
   * Adds the gradient of sum_t (dLogprobs[t] * logprobs[t] + dEntropy[t] * entropy[t]) to every parameter's. Both [Tc], any float type; null: 0. Once per
   * pass.
   * @param watch told of each part that has trained parameters, from the head to the patch embedding; of a tied embedding before the head, too
   */
  backward(dLogprobs: Tensor, dEntropy: Tensor | null = null, watch?: PartWatch): void {
    const tape = this.#tape;
    invariant(tape !== null, "backward of a pass that was made with grad: false");
    invariant(!this.#walked, "a pass has one backward");
    if (dLogprobs.ndim !== 1 || dLogprobs.size(0) !== this.logprobs.size(0)) {
      throw new ShapeError("pass.backward", `dLogprobs [${this.logprobs.size(0)}]`, dLogprobs.shape);
    }
    this.#walked = true;
    if (this.#isTied) watch?.before(PARTS.embedding);
    watch?.before(PARTS.head);
    scope(() => tape.backward(this.#head.backward(dLogprobs, dEntropy), watch));
  }

  [Symbol.dispose](): void {
    this.#head[Symbol.dispose]();
    this.#release();
  }

  #release(): void {
    this.#tape?.[Symbol.dispose]();
    for (const item of this.#owned.splice(0)) item[Symbol.dispose]();
  }

  #forward(model: PassModel, pack: Packed, options: PassOptions): ChunkedLogprobs {
    const { config, device, text } = model;
    const recompute = planOf(options.recompute).text;
    const { watch } = options;
    invariant(watch === undefined || this.#tape === null, "a pass with a backward needs its weights where they are");
    const step = watched(this.#stepFor(recompute, model), watch);
    const plan = this.#own(new PackedPlan(pack, options.attention));
    const rope = model.textRope.table(pack.positions, model.dtype);
    this.#ownTensors([rope.cos, rope.sin]);
    const rows = fromArray(pack.predictRows, [pack.predictRows.length], { dtype: "int64", device });
    const targets = fromArray(pack.targets, [pack.targets.length], { dtype: "int64", device });
    this.#ownTensors([rows]);

    const { features, trained } = this.#features(model, pack, options);
    // features that want no gradient are a constant of the first step
    const embedded = step(
      trained ? features : null,
      (input) => embedTokens(pack.ids, trained ? input : features, text, config),
      PARTS.embedding,
    );
    const hidden = textLayers(
      embedded,
      text,
      config,
      rope,
      plan,
      step,
      recompute,
      this.#words(options.dropout?.text, device),
    );
    embedded.free();
    const normed = (input: Tensor | null) =>
      rmsNorm(indexSelect(input as Tensor, 0, rows), text.norm, config.text.rmsNormEps);
    watch?.before(PARTS.head);
    const predicting = this.#stepFor(recompute, model)(hidden, normed, PARTS.head);
    hidden.free();
    this.#ownTensors([predicting]);
    const head = new ChunkedLogprobs(predicting, text.head, targets, { backward: options.grad });
    watch?.after(PARTS.head);
    return head;
  }

  /** Steps in front of the first one with something to train are not recorded: no gradient has to come to them. */
  #stepFor(recompute: Recompute, { trained }: PassModel): Step {
    const tape = this.#tape;
    if (tape === null) return plainStep;
    const recorded = recompute === "layer" ? tape.stepAgain : tape.step;
    return (input, run, part) => (tape.isRecording || trained.has(part) ? recorded : plainStep)(input, run, part);
  }

  #words(words: Int32Array | undefined, device: Device): Tensor | null {
    if (words === undefined) return null;
    const tensor = fromArray(words, [words.length], { dtype: "int32", device });
    this.#ownTensors([tensor]);
    return tensor;
  }

  #features(model: PassModel, pack: Packed, options: PassOptions): { features: Tensor | null; trained: boolean } {
    const { config } = model;
    const prompts = pack.groups.map((group) => group.prompt);
    if (options.visionCache !== undefined) {
      const features = scope(() => noGrad(() => joinFeatures(options.visionCache ?? [], pack, config)));
      if (features !== null) this.#ownTensors([features]);
      return { features, trained: false };
    }
    const media = mediaOf(prompts);
    if (media.length === 0) return { features: null, trained: false };
    const batch = visionBatch(media, config, model.visionRope, model);
    this.#ownTensors([batch.pixels, batch.rope.cos, batch.rope.sin]);
    const wanted = this.#tape !== null && options.freezeVision !== true;
    const recompute = wanted ? planOf(options.recompute).vision : "none";
    const step = wanted ? this.#stepFor(recompute, model) : watched(plainStep, options.watch);
    const dropout = wanted ? this.#words(options.dropout?.vision, model.device) : null;
    const features = visionTower(batch, model.vision, config, step, recompute, dropout);
    const trained = wanted && this.#tape?.isRecording === true;
    if (!trained) this.#ownTensors([features]);
    return { features, trained };
  }

  #own<T extends Disposable>(item: T): T {
    this.#owned.push(item);
    return item;
  }

  /** Steps may run again in the backward, so what they close over lives as long as the pass. */
  #ownTensors(tensors: readonly Tensor[]): void {
    for (const tensor of tensors) this.#own(keep(tensor));
  }
}

function planOf(recompute: PassOptions["recompute"] = "none"): RecomputePlan {
  return typeof recompute === "string" ? { text: recompute, vision: recompute } : recompute;
}

/** Cached features per group in the order of embedTokens: all images, then all videos. */
function joinFeatures(cache: readonly (Tensor | null)[], pack: Packed, config: Qwen2VLConfig): Tensor | null {
  invariant(
    cache.length === pack.groups.length,
    `visionCache has ${cache.length} entries for ${pack.groups.length} groups`,
  );
  const merged = config.vision.spatialMergeSize ** 2;
  const images: Tensor[] = [];
  const videos: Tensor[] = [];
  cache.forEach((features, i) => {
    if (features === null) return;
    const prompt = pack.groups[i]?.prompt;
    const imageRows = (prompt?.images ?? []).reduce((sum, { grid: [t, h, w] }) => sum + (t * h * w) / merged, 0);
    if (imageRows > 0) images.push(slice(features, 0, 0, imageRows));
    if (features.size(0) > imageRows) videos.push(slice(features, 0, imageRows, features.size(0)));
  });
  const all = [...images, ...videos];
  return all.length === 0 ? null : cat(all, 0);
}
