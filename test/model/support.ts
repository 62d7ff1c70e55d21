/** Helpers of the model tests: the tiny model of test/fixtures/qwen2vl, its goldens, random packs. */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type PackedGroup, packGroups } from "../../src/model/packed.ts";
import { parseConfig, type Qwen2VLConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { normal, randomInt } from "../../src/random.ts";
import { add, copy_, detach } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import type { VisionInput } from "../../src/types.ts";

export const FIXTURES = fileURLToPath(new URL("../fixtures/qwen2vl/", import.meta.url));

/** A file of goldens: numbers by name. */
export class Goldens implements Disposable {
  readonly #file: SafetensorsFile;

  constructor(name: string, folder = FIXTURES) {
    this.#file = new SafetensorsFile(join(folder, name));
  }

  names(): string[] {
    return this.#file.names();
  }

  numbers(name: string): number[] {
    return scope(() => this.#file.tensor(name).toNumbers());
  }

  shape(name: string): readonly number[] {
    return this.#file.shape(name);
  }

  ints(name: string): Int32Array {
    return Int32Array.from(this.numbers(name));
  }

  /** Media of a case in the order of their placeholders. */
  media(name: string, kind: "image" | "video"): VisionInput[] {
    const found: VisionInput[] = [];
    for (let i = 0; this.names().includes(`${name}.${kind}${i}.grid`); i++) {
      found.push({
        pixels: Float32Array.from(this.numbers(`${name}.${kind}${i}.pixels`)),
        grid: this.numbers(`${name}.${kind}${i}.grid`) as VisionInput["grid"],
      });
    }
    return found;
  }

  group(name: string): PackedGroup {
    const positions = this.ints(`${name}.positions`);
    const completions: Int32Array[] = [];
    for (let i = 0; this.names().includes(`${name}.completion${i}`); i++)
      completions.push(this.ints(`${name}.completion${i}`));
    return {
      prompt: {
        inputIds: this.ints(`${name}.ids`),
        positions,
        nextPosition: Math.max(...positions) + 1,
        images: this.media(name, "image"),
        videos: this.media(name, "video"),
      },
      completions,
    };
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

/** |a - b| / |b| in the Euclidean norm. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`expected ${b.length} numbers, got ${a.length}`);
  let difference = 0;
  let size = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (Number(a[i]) - Number(b[i])) ** 2;
    size += Number(b[i]) ** 2;
  }
  return Math.sqrt(difference / size);
}

/** A tiny config; `tied` shares embedding and head. */
export function tinyConfig(tied = false): Qwen2VLConfig {
  return parseConfig({
    model_type: "qwen2_vl",
    vocab_size: 60,
    hidden_size: 32,
    intermediate_size: 40,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    rope_scaling: { type: "mrope", mrope_section: [1, 1, 2] },
    tie_word_embeddings: tied,
    image_token_id: 56,
    video_token_id: 57,
    vision_start_token_id: 58,
    vision_end_token_id: 59,
    eos_token_id: 55,
    vision_config: { depth: 2, embed_dim: 16, hidden_size: 32, mlp_ratio: 2, num_heads: 2, patch_size: 2 },
  });
}

/** Random weights of a size at which every part matters: norms and biases off their initial values, embeddings of unit size. */
export function shakenModel(config: Qwen2VLConfig, seed: number, dtype: "float32" | "float64" = "float64"): Qwen2VL {
  const model = Qwen2VL.random(config, { device: "cpu", dtype, seed });
  model.parameters.forEach(({ tensor, name }, p) => {
    scope(() => {
      const scale = name.includes("embed_tokens") ? 1 : 0.3;
      const noise = Float64Array.from({ length: tensor.numel }, (_, i) => scale * normal(seed, p, i));
      addInPlace(tensor, fromArray(noise, tensor.shape, { dtype }));
    });
  });
  return model;
}

function addInPlace(x: Tensor, y: Tensor): void {
  copy_(x, add(detach(x), y));
}

/** A random group: text, then each of the media, then text; completions of the given lengths. */
export function randomGroup(
  config: Qwen2VLConfig,
  seed: number,
  options: { images?: VisionInput["grid"][]; videos?: VisionInput["grid"][]; completions: number[]; text?: number },
): PackedGroup {
  const { images = [], videos = [], completions, text = 3 } = options;
  const width = config.vision.inChannels * config.vision.temporalPatchSize * config.vision.patchSize ** 2;
  const words = (n: number, key: string) => Array.from({ length: n }, (_, i) => randomInt(50, seed, key, i));
  const media = (grids: VisionInput["grid"][], key: string) =>
    grids.map((grid, i): VisionInput => {
      const values = grid[0] * grid[1] * grid[2] * width;
      return { grid, pixels: Float32Array.from({ length: values }, (_, j) => normal(seed, key, i, j)) };
    });
  const ids = words(text, "before");
  const placeholders = (grids: VisionInput["grid"][], id: number) => {
    for (const [t, h, w] of grids) ids.push(58, ...Array<number>((t * h * w) / 4).fill(id), 59);
  };
  placeholders(videos, config.videoTokenId); // videos first, so that the order of features is not the order of rows
  placeholders(images, config.imageTokenId);
  ids.push(...words(2, "after"));
  // any positions will do here as long as the axes differ; true ones come from src/data/mrope.ts
  const positions = Int32Array.from(
    { length: 3 * ids.length },
    (_, i) => (i % ids.length) + (randomInt(3, seed, "position", i) - 1),
  );
  return {
    prompt: {
      inputIds: Int32Array.from(ids),
      positions,
      nextPosition: Math.max(...positions) + 1,
      images: media(images, "image"),
      videos: media(videos, "video"),
    },
    completions: completions.map((length, g) => Int32Array.from(words(length, `completion ${g}`))),
  };
}

/** Log-probabilities and all gradients of sum(weights * logprobs) of one pass; gradients are cleared before and after. */
export function gradientsOf(
  model: Qwen2VL,
  groups: PackedGroup[],
  weights: ArrayLike<number>,
  options: Omit<Parameters<Qwen2VL["pass"]>[1], "grad"> = {},
): { logprobs: number[]; entropy: number[]; gradients: Map<string, number[]> } {
  for (const { tensor } of model.parameters) tensor.setGrad(null);
  const result = scope(() => {
    using pass = model.pass(packGroups(groups), { grad: true, ...options });
    const logprobs = pass.logprobs.toNumbers();
    const entropy = pass.entropy.toNumbers();
    pass.backward(fromArray(Float64Array.from(weights), [weights.length], { device: model.device }));
    const gradients = new Map(
      model.parameters.map(({ name, tensor }) => [
        name,
        tensor.grad?.toNumbers() ?? Array<number>(tensor.numel).fill(0),
      ]),
    );
    return { logprobs, entropy, gradients };
  });
  for (const { tensor } of model.parameters) tensor.setGrad(null);
  return result;
}
