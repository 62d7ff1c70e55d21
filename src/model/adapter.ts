/** The adapter of a Qwen2-VL: its matrices as parameters, made anew or read, and what they add to the weights that they are beside. */

import { hash64 } from "../random.ts";
import { noGrad } from "../torch/autograd.ts";
import { add, cast, copy_, mm, mul, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../torch/tensor.ts";
import type { LoraPair } from "./lora.ts";
import type { Parameter } from "./parameter.ts";
import type { Qwen2VLConfig } from "./qwen2vl/config.ts";
import { adapterSpecs, type LoraSite, loraSites } from "./qwen2vl/lora-sites.ts";
import type { TextWeights, VisionWeights } from "./qwen2vl/parameters.ts";

/** What an adapter is, beside its numbers. */
export interface LoraSettings {
  rank: number;
  alpha: number;
  /** alpha / sqrt(rank) in place of alpha / rank. */
  rslora: boolean;
  dropout: number;
  /** q_proj, fc1, ... */
  targets: readonly string[];
}

export interface AdapterOptions {
  device: Device;
  dtype: DType;
}

export class Adapter implements Disposable {
  readonly settings: LoraSettings;
  /** A and B of each site. */
  readonly parameters: readonly Parameter[];
  readonly #sites: readonly LoraSite[];

  private constructor(config: Qwen2VLConfig, settings: LoraSettings, options: AdapterOptions) {
    this.settings = settings;
    this.#sites = loraSites(config, settings.targets);
    // in a scope, so that what is there is freed where memory ends half-way
    this.parameters = scope(() =>
      adapterSpecs(config, settings).map(({ name, shape, parts }) => ({ name, parts, tensor: zeros(shape, options) })),
    );
    for (const { tensor } of this.parameters) keep(tensor).setRequiresGrad(true);
  }

  /**
   * A new adapter: A uniform in +-1 / sqrt(its columns), which is PEFT's kaiming_uniform_(a = sqrt(5)), B zero, so that it adds nothing. Every A is a
   * function of the seed and of its name, on every device.
   */
  static create(config: Qwen2VLConfig, settings: LoraSettings, options: AdapterOptions & { seed: number }): Adapter {
    return Adapter.#filled(config, settings, options, (part, into) => {
      if (!part.includes(".lora_A.")) return;
      const [rank, columns] = into.shape as [number, number];
      const bound = 1 / Math.sqrt(columns);
      const draws = uniforms(rank * columns, options.seed, "lora", part);
      copy_(
        into,
        fromArray(
          draws.map((u) => bound * (2 * u - 1)),
          into.shape,
        ),
      );
    });
  }

  /** Of tensors by the name of their part, such as `model.layers.0.self_attn.q_proj.lora_A.weight`. */
  static from(
    config: Qwen2VLConfig,
    settings: LoraSettings,
    options: AdapterOptions,
    read: (part: string) => Tensor,
  ): Adapter {
    return Adapter.#filled(config, settings, options, (part, into) => void copy_(into, read(part)));
  }

  static #filled(
    config: Qwen2VLConfig,
    settings: LoraSettings,
    options: AdapterOptions,
    fill: (part: string, into: Tensor) => void,
  ): Adapter {
    const adapter = new Adapter(config, settings, options);
    try {
      for (const { parts, tensor } of adapter.parameters) {
        for (const { name, rows } of parts) scope(() => noGrad(() => fill(name, slice(tensor, 0, ...rows))));
      }
      return adapter;
    } catch (error) {
      adapter[Symbol.dispose]();
      throw error;
    }
  }

  get scale(): number {
    const { rank, alpha, rslora } = this.settings;
    return alpha / (rslora ? Math.sqrt(rank) : rank);
  }

  /** The same weights with the adapter beside them; weights and adapter stay whose they are. */
  beside(weights: { text: TextWeights; vision: VisionWeights }): { text: TextWeights; vision: VisionWeights } {
    const layers = weights.text.layers.map((layer) => ({
      ...layer,
      lora: undefined as TextWeights["layers"][0]["lora"],
    }));
    const blocks = weights.vision.blocks.map((block) => ({
      ...block,
      lora: undefined as VisionWeights["blocks"][0]["lora"],
    }));
    for (const [i, { weight, part, modules }] of this.#sites.entries()) {
      const pair: LoraPair = {
        a: this.parameters[2 * i]?.tensor as Tensor,
        b: this.parameters[2 * i + 1]?.tensor as Tensor,
        spans: modules.flatMap(({ begin, end }) => [begin, end]),
        scale: this.scale,
        dropout: this.settings.dropout,
        key: hash64("dropout", weight)[0],
      };
      const at = (part.kind === "layer" ? layers : blocks)[part.index] as { lora?: Record<string, LoraPair> };
      at.lora = { ...at.lora, [part.slot]: pair };
    }
    return {
      text: { ...weights.text, layers: layers.map(withoutNone) },
      vision: { ...weights.vision, blocks: blocks.map(withoutNone) },
    };
  }

  /** A stored weight `<module>.weight` with the adapter added, in its dtype, rounded once; null where none is beside it. In the caller's scope. */
  merged(stored: string, weight: Tensor): Tensor | null {
    const module = stored.replace(/\.weight$/, "");
    const i = this.#sites.findIndex(({ modules }) => modules.some(({ name }) => name === module));
    if (i === -1 || module === stored) return null;
    const [a, b] = [2 * i, 2 * i + 1].map((at) => this.parameters[at] as Parameter) as [Parameter, Parameter];
    const exact = weight.dtype === "float64" ? "float64" : "float32";
    const rowsOf = ({ parts, tensor }: Parameter) => {
      const part = parts.find(({ name }) => name.startsWith(`${module}.lora_`));
      return cast(slice(tensor, 0, ...(part?.rows as [number, number])), exact);
    };
    return noGrad(() => cast(add(cast(weight, exact), mul(mm(rowsOf(b), rowsOf(a)), this.scale)), weight.dtype));
  }

  /** Adds the adapter to the weights of some parameters, in place. */
  mergeInto(parameters: readonly Parameter[]): void {
    for (const { parts, tensor } of parameters) {
      for (const { name, rows } of parts) {
        scope(() =>
          noGrad(() => {
            const place = slice(tensor, 0, ...rows);
            const merged = place.ndim === 2 ? this.merged(name, place) : null;
            if (merged !== null) copy_(place, merged);
          }),
        );
      }
    }
  }

  [Symbol.dispose](): void {
    for (const { tensor } of this.parameters) tensor.free();
  }
}

function withoutNone<T extends { lora: unknown }>(weights: T): T {
  if (weights.lora !== undefined) return weights;
  const { lora: _, ...rest } = weights;
  return rest as T;
}

/** Numbers in [0, 1), multiples of 2^-24, each a function of the keys and its place. */
function uniforms(count: number, ...keys: (number | string)[]): Float64Array {
  const [high, low] = hash64(...keys);
  return Float64Array.from({ length: count }, (_, i) => (mixed(mixed(i ^ low) ^ high) >>> 8) / 2 ** 24);
}

/** MurmurHash3's finalizer. */
function mixed(word: number): number {
  let h = word;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
