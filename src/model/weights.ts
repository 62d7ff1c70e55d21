/**
 * Between a model's parameters and the tensors of a Hugging Face folder. Two name layouts are read, Qwen2-VL's original one
 * (`model.*`, `visual.*`, `lm_head.*`) and that of transformers >= 4.52 (`model.language_model.*`, `model.visual.*`); the original is written.
 */

import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { CheckpointError } from "../errors.ts";
import { noGrad } from "../torch/autograd.ts";
import { clone, copy_, empty, fill_, mul, randn, reshape, slice } from "../torch/ops.ts";
import { Generator as RandomGenerator } from "../torch/random.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Device, DType, Tensor } from "../torch/tensor.ts";
import type { Parameter, ParameterPart, ParameterSpec } from "./parameter.ts";
import { byteLength, openShards, replaceFile, type TensorEntry, writeSafetensors } from "./safetensors.ts";
import { readWeights, type WeightRead } from "./weight-reader.ts";

/** A name of either layout in the original one. */
export function originalName(name: string): string {
  if (name.startsWith("model.language_model.")) return `model.${name.slice("model.language_model.".length)}`;
  if (name.startsWith("model.visual.")) return name.slice("model.".length);
  return name;
}

/** Rotary frequencies, which old writers stored beside the weights: they follow from config.json. */
const COMPUTED = /(^|\.)rotary_(pos_)?emb\.inv_freq$/;

/**
 * Reads all parameters from a folder straight to their device, converting the dtype there. The host holds no copy of them on the way.
 * `ignored` names may be present and are not read (the copy of a tied head).
 * @throws CheckpointError for missing, unexpected and misshapen tensors, with all of them in its details
 */
export function loadParameters(folder: string, specs: readonly ParameterSpec[], options: LoadOptions): Parameter[] {
  return [...loadGroups(folder, [specs], options)].flat();
}

export interface LoadOptions {
  device: Device;
  dtype: DType;
  ignored?: readonly string[];
}

/** As loadParameters, one group after the other: the device holds as much as the caller, who owns them, keeps. */
export function* loadGroups(
  folder: string,
  groups: readonly (readonly ParameterSpec[])[],
  options: LoadOptions,
): Generator<Parameter[]> {
  const { files, fileOf } = openShards(folder);
  try {
    const stored = new Map<string, { name: string; file: (typeof files)[number] }>();
    const twice: string[] = []; // one tensor under both names
    for (const [name, file] of fileOf) {
      if (COMPUTED.test(name)) continue;
      if (stored.has(originalName(name))) twice.push(name);
      else stored.set(originalName(name), { name, file });
    }
    const parts = groups.flat().flatMap((spec) => spec.parts);
    const missing = parts.filter((part) => !stored.has(part.name)).map((part) => part.name);
    const known = new Set([...parts.map((part) => part.name), ...(options.ignored ?? [])]);
    const surplus = [...stored.values()].map(({ name }) => name).filter((name) => !known.has(originalName(name)));
    const unexpected = [...surplus, ...twice];
    const misshapen = parts.flatMap((part) => {
      const found = stored.get(part.name);
      const shape = found?.file.shape(found.name);
      return shape === undefined || same(shape, part.shape)
        ? []
        : [`${part.name}: expected [${part.shape.join(", ")}], got [${shape.join(", ")}]`];
    });
    const problems = { missing, unexpected, misshapen };
    if (Object.values(problems).some((names) => names.length > 0))
      throw new CheckpointError(folder, `weights do not fit the config; ${listed(problems)}`, problems);
    for (const specs of groups) {
      yield makeParameters(specs, options, (tensors) => {
        const reads = specs.flatMap((spec, i) =>
          spec.parts.map((part): WeightRead => {
            const { name, file } = stored.get(part.name) as { name: string; file: (typeof files)[number] };
            return { file, name, into: slice(tensors[i] as Tensor, 0, ...part.rows) };
          }),
        );
        readWeights(reads);
      });
    }
  } finally {
    for (const file of files) file[Symbol.dispose]();
  }
}

/** Fresh random parameters, drawn on the device. The same seed, dtype and kind of device give the same weights. */
export function randomParameters(specs: readonly ParameterSpec[], options: DrawOptions): Parameter[] {
  return [...randomGroups([specs], options)].flat();
}

export interface DrawOptions {
  device: Device;
  dtype: DType;
  seed: number;
}

/** As randomParameters, with the same weights, one group after the other; they belong to the caller. */
export function* randomGroups(
  groups: readonly (readonly ParameterSpec[])[],
  options: DrawOptions,
): Generator<Parameter[]> {
  using generator = new RandomGenerator(options.seed, options.device);
  for (const specs of groups) {
    yield makeParameters(specs, options, (tensors) => {
      for (const [i, { shape, init }] of specs.entries()) fillRandom(tensors[i] as Tensor, shape, init, generator);
    });
  }
}

function fillRandom(tensor: Tensor, shape: number[], init: ParameterSpec["init"], generator: RandomGenerator): void {
  if ("constant" in init) {
    fill_(tensor, init.constant);
    return;
  }
  // drawn in float32 whatever the dtype, so that bfloat16 weights are the rounded float32 ones
  scope(() => {
    const draws = randn(shape, { dtype: "float32", device: tensor.device, generator });
    copy_(tensor, mul(draws, init.std));
  });
}

/** A frozen copy in new memory. */
export function copyParameters(parameters: readonly Parameter[]): Parameter[] {
  // in a scope, so that what is there is freed where memory ends half-way
  const copies = scope(() =>
    noGrad(() => parameters.map(({ name, parts, tensor }) => ({ name, parts, tensor: clone(tensor) }))),
  );
  for (const { tensor } of copies) keep(tensor);
  return copies;
}

/** Files of a model folder that belong to the tokenizer and the processor. */
const COMPANIONS = [
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
  "merges.txt",
  "added_tokens.json",
  "special_tokens_map.json",
  "chat_template.json",
  "chat_template.jinja",
  "preprocessor_config.json",
  "processor_config.json",
  "video_preprocessor_config.json",
];

/** The files of a Hugging Face folder before they are written, by name. */
export interface FolderContent {
  weights: { name: string; tensors: TensorEntry[] }[];
  /** Text of JSON files. */
  texts: { name: string; text: string }[];
  /** Files to be copied. */
  copies: { name: string; from: string }[];
}

/**
 * A Hugging Face folder: `files` (config.json, generation_config.json), and the weights in shards of at most `maxShardBytes`.
 * `copyFrom` is a folder whose tokenizer and processor files are copied along.
 */
export function folderContent(
  parameters: readonly Parameter[],
  files: Record<string, unknown>,
  options: {
    copyFrom?: string | undefined;
    maxShardBytes?: number | undefined;
    /** What is stored in a weight's place, of its shape and dtype; null: the weight. */
    replace?: (name: string, weight: Tensor) => Tensor | null;
  } = {},
): FolderContent {
  const limit = options.maxShardBytes ?? 5e9;
  const shards: { parameter: Parameter; part: ParameterPart }[][] = [];
  let room = 0;
  for (const parameter of parameters) {
    for (const part of parameter.parts) {
      const bytes = byteLength(parameter.tensor.dtype, part.shape);
      if (shards.length === 0 || bytes > room) {
        shards.push([]);
        room = limit;
      }
      shards.at(-1)?.push({ parameter, part });
      room -= bytes;
    }
  }
  const weights = shards.map((shard, i) => ({
    name:
      shards.length === 1 ? "model.safetensors" : `model-${counted(i + 1)}-of-${counted(shards.length)}.safetensors`,
    tensors: shard.map(({ parameter: { tensor }, part }) => ({
      name: part.name,
      dtype: tensor.dtype,
      shape: part.shape,
      read: () =>
        noGrad(() => {
          const weight = reshape(slice(tensor, 0, ...part.rows), part.shape);
          return options.replace?.(part.name, weight) ?? weight;
        }),
    })),
  }));
  const texts = Object.entries(shards.length > 1 ? { ...files, [INDEX]: shardIndex(weights) } : files);
  const { copyFrom } = options;
  const companions = copyFrom === undefined ? [] : COMPANIONS.map((name) => ({ name, from: join(copyFrom, name) }));
  return {
    weights,
    texts: texts.map(([name, json]) => ({ name, text: `${JSON.stringify(json, null, 2)}\n` })),
    copies: companions.filter(({ from }) => existsSync(from)),
  };
}

/** Writes a Hugging Face folder; weights of an earlier save under other names are removed. */
export function saveFolder(folder: string, { weights, texts, copies }: FolderContent): void {
  mkdirSync(folder, { recursive: true });
  for (const { name, tensors } of weights) writeSafetensors(join(folder, name), tensors);
  for (const { name, text } of texts) replaceFile(join(folder, name), (fd) => writeFileSync(fd, text));
  const names = new Set(weights.map(({ name }) => name));
  for (const old of readdirSync(folder)) {
    const surplusIndex = old === INDEX && weights.length === 1;
    if (surplusIndex || (/^model.*\.safetensors$/.test(old) && !names.has(old))) rmSync(join(folder, old));
  }
  for (const { name, from } of copies) {
    const target = join(folder, name);
    if (resolve(from) !== resolve(target)) copyFileSync(from, target);
  }
}

const INDEX = "model.safetensors.index.json";

function shardIndex(weights: FolderContent["weights"]): unknown {
  const entries = weights.flatMap(({ name, tensors }) => tensors.map((tensor) => ({ file: name, ...tensor })));
  return {
    metadata: { total_size: entries.reduce((total, { dtype, shape }) => total + byteLength(dtype, shape), 0) },
    weight_map: Object.fromEntries(entries.map(({ name, file }) => [name, file])),
  };
}

const counted = (n: number) => String(n).padStart(5, "0");

/** Makes all tensors, then fills them; when that fails, none stays. */
function makeParameters(
  specs: readonly ParameterSpec[],
  options: { device: Device; dtype: DType },
  fill: (tensors: readonly Tensor[]) => void,
): Parameter[] {
  const tensors: Tensor[] = [];
  try {
    for (const { shape } of specs) tensors.push(keep(empty(shape, options)));
    scope(() => noGrad(() => fill(tensors)));
  } catch (error) {
    for (const tensor of tensors) tensor.free();
    throw error;
  }
  return specs.map(({ name, parts }, i) => ({
    name,
    parts,
    tensor: (tensors[i] as Tensor).setRequiresGrad(true),
  }));
}

function same(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((n, i) => n === b[i]);
}

/** "2 missing: a, b; 30 unexpected: c, d, ...": of each kind the first ones, since a model of another family has hundreds. */
export function listed(problems: Record<string, readonly string[]>): string {
  return Object.entries(problems)
    .filter(([, names]) => names.length > 0)
    .map(
      ([kind, names]) =>
        `${names.length} ${kind}: ${names.slice(0, NAMED).join(", ")}${names.length > NAMED ? ", ..." : ""}`,
    )
    .join("; ");
}

/** Tensors of one kind that a message names; its details have all. */
const NAMED = 16;
