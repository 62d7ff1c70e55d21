/** Qwen2-VL (arXiv:2409.12191) with its weights: load, save, and the forward passes that sampling and training are made of. */

import { invariant } from "../../errors.ts";
import { noGrad } from "../../torch/autograd.ts";
import { scope } from "../../torch/scope.ts";
import type { Device, DType, Tensor } from "../../torch/tensor.ts";
import type { VisionInput } from "../../types.ts";
import type { Adapter } from "../adapter.ts";
import type { AttentionPlan, FusedAttentionPlan } from "../attention.ts";
import type { Packed } from "../packed.ts";
import type { Parameter } from "../parameter.ts";
import { PackedPass, type PassModel, type PassOptions } from "../pass.ts";
import { Rope } from "../rope.ts";
import { plainStep } from "../tape.ts";
import {
  copyParameters,
  type FolderContent,
  folderContent,
  loadGroups,
  loadParameters,
  randomGroups,
  randomParameters,
  saveFolder,
} from "../weights.ts";
import { configJson, generationJson, headDim, type Qwen2VLConfig, readConfig } from "./config.ts";
import { byPart, groupWeights, parameterSpecs, partOf, type TextWeights, type VisionWeights } from "./parameters.ts";
import { embedTokens, textLayers } from "./text.ts";
import { linear, rmsNorm } from "./text-ops.ts";
import { visionBatch, visionTower } from "./vision.ts";

export interface ModelOptions {
  device: Device;
  /** Of weights and activations; float64 is for gradient checks. */
  dtype: DType;
}

export class Qwen2VL implements Disposable {
  readonly config: Qwen2VLConfig;
  readonly device: Device;
  readonly dtype: DType;
  /** In the order of the forward pass. A tied head is the embedding, and is here once. */
  readonly parameters: readonly Parameter[];
  readonly weights: { text: TextWeights; vision: VisionWeights };
  /** What is beside the parameters and part of the model. */
  readonly adapter: Adapter | null;
  readonly #textRope: Rope;
  readonly #visionRope: Rope;
  #owns: boolean; // parameters and adapter

  private constructor(
    config: Qwen2VLConfig,
    parameters: readonly Parameter[],
    options: ModelOptions,
    { adapter = null, owns = true }: { adapter?: Adapter | null; owns?: boolean } = {},
  ) {
    this.config = config;
    this.device = options.device;
    this.dtype = options.dtype;
    this.parameters = parameters;
    this.adapter = adapter;
    this.#owns = owns;
    const weights = groupWeights(config, parameters);
    this.weights = adapter?.beside(weights) ?? weights;
    const { text, vision } = config;
    const quarter = vision.embedDim / vision.numHeads / 4;
    const { device } = options;
    this.#textRope = new Rope({ sections: text.mropeSection, theta: text.ropeTheta, restart: false, device });
    this.#visionRope = new Rope({ sections: [quarter, quarter], theta: 10000, restart: true, device });
  }

  /**
   * Reads a Hugging Face folder (config.json, model.safetensors or its shards), in either of the two layouts.
   * @throws CheckpointError for missing, unexpected and misshapen tensors
   */
  static load(folder: string, options: ModelOptions): Qwen2VL {
    const config = readConfig(folder);
    return new Qwen2VL(
      config,
      loadParameters(folder, parameterSpecs(config), { ...options, ...ignored(config) }),
      options,
    );
  }

  /** What load() reads, one part of the model (PARTS) after the other: the device holds as much as the caller, who owns them, keeps. */
  static loadParts(folder: string, options: ModelOptions): Generator<Parameter[]> {
    const config = readConfig(folder);
    return loadGroups(folder, byPart(parameterSpecs(config)), { ...options, ...ignored(config) });
  }

  /** Fresh random weights, a function of the seed on one kind of device. */
  static random(config: Qwen2VLConfig, options: ModelOptions & { seed: number }): Qwen2VL {
    return new Qwen2VL(config, randomParameters(parameterSpecs(config), options), options);
  }

  /** What random() draws, one part after the other, as loadParts() has them. */
  static randomParts(config: Qwen2VLConfig, options: ModelOptions & { seed: number }): Generator<Parameter[]> {
    return randomGroups(byPart(parameterSpecs(config)), options);
  }

  /** Over parameters that somebody else has made, in the order of parameterSpecs. They become the model's. */
  static over(config: Qwen2VLConfig, parameters: readonly Parameter[], options: ModelOptions): Qwen2VL {
    return new Qwen2VL(config, parameters, options);
  }

  /** A model of these parameters with an adapter beside them. It takes both over: this one is of no use any more. */
  withAdapter(adapter: Adapter): Qwen2VL {
    this.#owns = false;
    this[Symbol.dispose]();
    return new Qwen2VL(this.config, this.parameters, this, { adapter });
  }

  /** The model without its adapter, over the same memory, which stays this model's. */
  withoutAdapter(): Qwen2VL {
    return new Qwen2VL(this.config, this.parameters, this, { owns: false });
  }

  /** A frozen copy: the same values in new memory, no gradients. Of a model without an adapter. */
  clone(): Qwen2VL {
    invariant(this.adapter === null, "a model with an adapter is not copied: withoutAdapter() is its reference");
    return new Qwen2VL(this.config, copyParameters(this.parameters), this);
  }

  /**
   * The files of a Hugging Face folder: config.json, generation_config.json, weights under Qwen2-VL's original names, an adapter merged into them.
   * @param options.copyFrom a folder whose tokenizer and processor files are copied along
   */
  folderContent(options: { copyFrom?: string; maxShardBytes?: number } = {}): FolderContent {
    const files = {
      "config.json": configJson(this.config, this.dtype),
      "generation_config.json": generationJson(this.config),
    };
    const { adapter } = this;
    return folderContent(this.parameters, files, {
      ...options,
      ...(adapter && { replace: (name, weight) => adapter.merged(name, weight) }),
    });
  }

  /**
   * Writes that folder. Every file is replaced whole; a folder that must appear at once is the caller's business (write beside it, then
   * rename).
   */
  save(folder: string, options: { copyFrom?: string; maxShardBytes?: number } = {}): void {
    saveFolder(folder, this.folderContent(options));
  }

  /** Features of images and videos, in the order given: [sum(t * h * w / merge^2), hidden]. No gradient. Belongs to the caller. */
  visionFeatures(inputs: readonly VisionInput[]): Tensor {
    invariant(inputs.length > 0, "visionFeatures needs an image or a video");
    return scope(() =>
      visionTower(
        visionBatch(inputs, this.config, this.#visionRope, this),
        this.weights.vision,
        this.config,
        plainStep,
      ),
    );
  }

  /**
   * Input embeddings [T, hidden]. `features` (see visionFeatures and mediaOf) fill the placeholder rows: all images of `ids` in order,
   * then all videos in order. Ids on the device (int64 [T]) are text only: nothing waits for their values. No gradient.
   * @throws ShapeError when features and placeholders do not match in number
   */
  embed(ids: Int32Array | Tensor, features: Tensor | null): Tensor {
    return scope(() => noGrad(() => embedTokens(ids, features, this.weights.text, this.config)));
  }

  /** Input embeddings [T, hidden] up to the final norm, [T, hidden]; positions [3, T]. Works under capture when positions are on the device. */
  forward(hidden: Tensor, positions: Int32Array | Tensor, plan: AttentionPlan | FusedAttentionPlan): Tensor {
    return scope(() =>
      noGrad(() => {
        const rope = this.#textRope.table(positions, this.dtype);
        const last = textLayers(hidden, this.weights.text, this.config, rope, plan, plainStep);
        return rmsNorm(last, this.weights.text.norm, this.config.text.rmsNormEps);
      }),
    );
  }

  /** Logits [T, vocab] of normed hidden states [T, hidden], in the model's dtype. */
  logits(hidden: Tensor): Tensor {
    return noGrad(() => linear(hidden, this.weights.text.head, null));
  }

  /** Log-probabilities and entropies of all completion tokens of a pack, and their backward. The caller disposes the pass. */
  pass(pack: Packed, options: PassOptions): PackedPass {
    const model: PassModel = {
      config: this.config,
      device: this.device,
      dtype: this.dtype,
      text: this.weights.text,
      vision: this.weights.vision,
      textRope: this.#textRope,
      visionRope: this.#visionRope,
      trained: options.grad ? this.#trainedParts() : new Set(),
    };
    return new PackedPass(model, pack, options);
  }

  /** Parts with a weight, or an adapter beside one, that wants a gradient. */
  #trainedParts(): Set<string> {
    const all = [...this.parameters, ...(this.adapter?.parameters ?? [])];
    return new Set(all.filter(({ tensor }) => tensor.requiresGrad).map(({ name }) => partOf(name)));
  }

  /** Positions per head: what a key-value cache holds for each token and layer is 2 * numKvHeads * headDim values. */
  get headDim(): number {
    return headDim(this.config);
  }

  [Symbol.dispose](): void {
    if (this.#owns) {
      for (const { tensor } of this.parameters) tensor.free();
      this.adapter?.[Symbol.dispose]();
    }
    this.#textRope[Symbol.dispose]();
    this.#visionRope[Symbol.dispose]();
  }
}

/** Some writers store a tied head again. */
function ignored({ tieWordEmbeddings }: Qwen2VLConfig): { ignored: string[] } {
  return { ignored: tieWordEmbeddings ? ["lm_head.weight"] : [] };
}
