/**
 * Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, whose tensors are `base_model.model.<module>.lora_A.weight` and
 * `.lora_B.weight`. Modules are called as in transformers since 4.52 (`model.language_model.layers.0...`); the older names are read, too.
 */

import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { CheckpointError } from "../errors.ts";
import { noGrad } from "../torch/autograd.ts";
import { slice } from "../torch/ops.ts";
import { Adapter, type AdapterOptions, type LoraSettings } from "./adapter.ts";
import { parseObject } from "./json.ts";
import type { Qwen2VLConfig } from "./qwen2vl/config.ts";
import { adapterSpecs } from "./qwen2vl/lora-sites.ts";
import { SafetensorsFile } from "./safetensors.ts";
import { type FolderContent, listed, originalName } from "./weights.ts";

export const ADAPTER_CONFIG = "adapter_config.json";
const ADAPTER_WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";

/** What of adapter_config.json counts here; what is left out has PEFT's default. */
interface PeftConfig {
  peft_type?: string;
  r?: number;
  lora_alpha?: number;
  lora_dropout?: number;
  use_rslora?: boolean;
  base_model_name_or_path?: string | null;
  [more: string]: unknown;
}

/** Knobs of PEFT that change what an adapter computes and that are not known here, with the values that change nothing. */
const UNKNOWN: Readonly<Record<string, (value: unknown) => boolean>> = {
  bias: (value) => value === "none",
  use_dora: (value) => value === false,
  lora_bias: (value) => value === false,
  fan_in_fan_out: (value) => value === false,
  use_qalora: (value) => value === false,
  rank_pattern: isEmpty,
  alpha_pattern: isEmpty,
  modules_to_save: isEmpty,
  trainable_token_indices: isEmpty,
  layer_replication: isEmpty,
  target_parameters: isEmpty,
  alora_invocation_tokens: isEmpty,
  init_lora_weights: leavesBase,
};

/** PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA change the base's weights as they begin: their adapters are no use beside the model as it is. */
function leavesBase(init: unknown): boolean {
  return typeof init !== "string" || ["gaussian", "eva", "orthogonal"].includes(init);
}

function isEmpty(value: unknown): boolean {
  return value === null || (typeof value === "object" && Object.keys(value as object).length === 0);
}

/** adapter_config.json of a folder. @throws CheckpointError where there is none, or it is not that of a LoRA that is known here */
export function readPeftConfig(folder: string): PeftConfig & { r: number } {
  const file = path.join(folder, ADAPTER_CONFIG);
  if (!existsSync(file))
    throw new CheckpointError(file, "is missing: expected the folder of an adapter in PEFT's layout");
  const config = parseObject(file, readFileSync(file, "utf8")) as PeftConfig;
  if (config.peft_type !== "LORA") throw new CheckpointError(file, `has peft_type ${config.peft_type}; expected LORA`);
  for (const [knob, changesNothing] of Object.entries(UNKNOWN)) {
    const value = config[knob];
    if (value !== undefined && !changesNothing(value))
      throw new CheckpointError(
        file,
        `has ${knob} ${JSON.stringify(value)}, which is not supported; merge the adapter with PEFT and use the model`,
      );
  }
  if (!Number.isInteger(config.r) || (config.r as number) < 1)
    throw new CheckpointError(file, `has r ${JSON.stringify(config.r)}; expected a whole number above 0`);
  return config as PeftConfig & { r: number };
}

/**
 * Reads an adapter for a model. Which modules it is beside is what its tensors say.
 * @param options.dropout in place of the folder's
 * @param options.targets the order of its targets, which decides nothing but what is written of it; default: that of its tensors
 * @throws CheckpointError for tensors that are missing, do not belong to this model or have another shape
 */
export function loadAdapter(
  folder: string,
  config: Qwen2VLConfig,
  options: AdapterOptions & { dropout?: number; targets?: readonly string[] },
): Adapter {
  const peft = readPeftConfig(folder);
  const file = path.join(folder, ADAPTER_WEIGHTS);
  if (!existsSync(file)) throw new CheckpointError(file, "is missing");
  using stored = new SafetensorsFile(file);
  const names = new Map(stored.names().map((name) => [partName(name), name]));
  if (names.size === 0) throw new CheckpointError(file, "holds no tensors: was it saved while they were sharded out?");
  const targets = [...new Set([...names.keys()].map((name) => /\.(\w+)\.lora_[AB]\.weight$/.exec(name)?.[1] ?? name))];
  const { targets: order } = options;
  if (order !== undefined) targets.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const parts = adapterSpecs(config, { rank: peft.r, targets }).flatMap((spec) => spec.parts);
  const known = new Set(parts.map(({ name }) => name));
  const missing = parts.filter(({ name }) => !names.has(name)).map(({ name }) => name);
  const unexpected = [...names].filter(([part]) => !known.has(part)).map(([, name]) => name);
  const misshapen = parts.flatMap(({ name, shape }) => {
    const found = names.has(name) ? stored.shape(names.get(name) as string) : shape;
    return found.join() === shape.join() ? [] : [`${name}: expected [${shape.join(", ")}], got [${found.join(", ")}]`];
  });
  if (missing.length + unexpected.length + misshapen.length > 0) {
    const problems = { missing, unexpected, misshapen };
    throw new CheckpointError(file, `does not fit the model; ${listed(problems)}`, problems);
  }
  const settings: LoraSettings = {
    rank: peft.r,
    alpha: peft.lora_alpha ?? 8,
    rslora: peft.use_rslora ?? false,
    dropout: options.dropout ?? peft.lora_dropout ?? 0,
    targets,
  };
  return Adapter.from(config, settings, options, (part) => stored.tensor(names.get(part) as string));
}

/** The adapter's files. @param base the folder or name of the model that it belongs to; null where it has none */
export function adapterContent(adapter: Adapter, base: string | null): Pick<FolderContent, "weights" | "texts"> {
  const tensors = adapter.parameters.flatMap(({ tensor, parts }) =>
    parts.map(({ name, rows, shape }) => ({
      name: peftName(name),
      dtype: tensor.dtype,
      shape,
      read: () => noGrad(() => slice(tensor, 0, ...rows)),
    })),
  );
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1)); // as safetensors' own writer has them
  const text = `${JSON.stringify(peftConfig(adapter.settings, base), null, 2)}\n`;
  return { weights: [{ name: ADAPTER_WEIGHTS, tensors }], texts: [{ name: ADAPTER_CONFIG, text }] };
}

/** What PEFT 0.10 writes for the same adapter: later versions fill in the defaults of what they know more, earlier ones refuse what they do not know. */
function peftConfig({ rank, alpha, dropout, rslora, targets }: LoraSettings, base: string | null): PeftConfig {
  return {
    alpha_pattern: {},
    auto_mapping: null,
    base_model_name_or_path: base,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layer_replication: null,
    layers_pattern: null,
    layers_to_transform: null,
    loftq_config: {},
    lora_alpha: alpha,
    lora_dropout: dropout,
    megatron_config: null,
    megatron_core: "megatron.core",
    modules_to_save: null,
    peft_type: "LORA",
    r: rank,
    rank_pattern: {},
    revision: null,
    target_modules: targetModules(targets),
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: rslora,
  };
}

/** Names where they are the language model's alone; a pattern where the vision tower's count, since its patch embedding is called proj, too. */
function targetModules(targets: readonly string[]): string[] | string {
  const ofText = targets.filter((target) => target.endsWith("_proj"));
  if (ofText.length === targets.length) return [...targets];
  const of = (names: readonly string[]) => names.filter((name) => targets.includes(name)).join("|");
  const groups = [
    ["attn", of(["qkv", "proj"])],
    ["mlp", of(["fc1", "fc2"])],
  ].filter(([, names]) => names !== "");
  const vision = `.*visual\\.blocks\\.\\d+\\.(${groups.map(([module, names]) => `${module}\\.(${names})`).join("|")})`;
  return ofText.length === 0 ? vision : `${vision}|.*\\.layers\\.\\d+\\.(self_attn|mlp)\\.(${ofText.join("|")})`;
}

/** `base_model.model.model.language_model.layers.0.x.lora_A.weight` as `model.layers.0.x.lora_A.weight`. */
function partName(name: string): string {
  const module = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : name;
  return originalName(module).replace(/\.lora_([AB])\.default\.weight$/, ".lora_$1.weight");
}

function peftName(part: string): string {
  const module = part.startsWith("model.") ? `model.language_model.${part.slice("model.".length)}` : `model.${part}`;
  return PREFIX + module;
}
