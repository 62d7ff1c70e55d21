/**
 * Every parameter of a Qwen2-VL: its name, shape, checkpoint tensors and random initialisation; and the same grouped by layer.
 * q, k, v projections are one matrix, and so are gate and up; checkpoints hold them apart, under Hugging Face's names.
 */

import { invariant } from "../../errors.ts";
import type { Tensor } from "../../torch/tensor.ts";
import type { LoraPair } from "../lora.ts";
import { fusedSpec, type Parameter, type ParameterSpec, plainSpec } from "../parameter.ts";
import { headDim, patchWidth, type Qwen2VLConfig } from "./config.ts";

/** Adapters of a decoder layer, where it has them. */
export interface TextLayerLora {
  qkv?: LoraPair;
  o?: LoraPair;
  gateUp?: LoraPair;
  down?: LoraPair;
}

/** Adapters of a block of the vision tower. */
export interface VisionBlockLora {
  qkv?: LoraPair;
  proj?: LoraPair;
  fc1?: LoraPair;
  fc2?: LoraPair;
}

export interface TextLayerWeights {
  inputNorm: Tensor; // [hidden]
  qkv: Tensor; // [(heads + 2 kvHeads) * headDim, hidden]
  qkvBias: Tensor; // [(heads + 2 kvHeads) * headDim]
  o: Tensor; // [hidden, heads * headDim]
  mlpNorm: Tensor; // [hidden]
  gateUp: Tensor; // [2 * intermediate, hidden]
  down: Tensor; // [hidden, intermediate]
  lora?: TextLayerLora;
}

export interface TextWeights {
  embedding: Tensor; // [vocab, hidden]
  layers: TextLayerWeights[];
  norm: Tensor; // [hidden]
  head: Tensor; // [vocab, hidden]; the embedding itself when tied
}

/** Weight and bias of a linear layer or a norm. */
export type Affine = { weight: Tensor; bias: Tensor };

export interface VisionBlockWeights {
  norm1: Affine;
  qkv: Affine; // [3 * embed, embed]
  proj: Affine; // [embed, embed]
  norm2: Affine;
  fc1: Affine; // [mlpRatio * embed, embed]
  fc2: Affine; // [embed, mlpRatio * embed]
  lora?: VisionBlockLora;
}

export interface VisionWeights {
  patchEmbed: Tensor; // [embed, channels * temporalPatch * patch * patch]
  blocks: VisionBlockWeights[];
  mergerNorm: Affine;
  merger1: Affine; // [merge^2 * embed, merge^2 * embed]
  merger2: Affine; // [hidden, merge^2 * embed]
}

/**
 * Parameters in the order of the forward pass. Random weights are Hugging Face's: matrices and embeddings from N(0, initializer_range),
 * biases 0, norms 1.
 */
export function parameterSpecs(config: Qwen2VLConfig): ParameterSpec[] {
  const { text, vision, tieWordEmbeddings } = config;
  const dim = headDim(config);
  const ones = { constant: 1 };
  const zeros = { constant: 0 };
  const normal = { std: config.initializerRange };
  const affine = (name: string, rows: number, columns: number) => [
    plainSpec(`${name}.weight`, [rows, columns], normal),
    plainSpec(`${name}.bias`, [rows], zeros),
  ];
  const layerNorm = (name: string, width: number) => [
    plainSpec(`${name}.weight`, [width], ones),
    plainSpec(`${name}.bias`, [width], zeros),
  ];

  const E = vision.embedDim;
  const merged = E * vision.spatialMergeSize ** 2;
  const { inChannels, temporalPatchSize, patchSize } = vision;
  const specs = [
    plainSpec("visual.patch_embed.proj.weight", [E, patchWidth(config)], normal, [
      E,
      inChannels,
      temporalPatchSize,
      patchSize,
      patchSize, // a 3-D convolution whose stride is its kernel: a linear map of a patch
    ]),
  ];
  for (let i = 0; i < vision.depth; i++) {
    const block = `visual.blocks.${i}`;
    specs.push(
      ...layerNorm(`${block}.norm1`, E),
      ...affine(`${block}.attn.qkv`, 3 * E, E),
      ...affine(`${block}.attn.proj`, E, E),
      ...layerNorm(`${block}.norm2`, E),
      ...affine(`${block}.mlp.fc1`, E * vision.mlpRatio, E),
      ...affine(`${block}.mlp.fc2`, E, E * vision.mlpRatio),
    );
  }
  specs.push(
    ...layerNorm("visual.merger.ln_q", E),
    ...affine("visual.merger.mlp.0", merged, merged),
    ...affine("visual.merger.mlp.2", text.hiddenSize, merged),
  );

  const X = text.hiddenSize;
  const qkv = (layer: string, kind: string): [string, number][] => [
    [`${layer}.self_attn.q_proj.${kind}`, text.numHeads * dim],
    [`${layer}.self_attn.k_proj.${kind}`, text.numKvHeads * dim],
    [`${layer}.self_attn.v_proj.${kind}`, text.numKvHeads * dim],
  ];
  specs.push(plainSpec("model.embed_tokens.weight", [text.vocabSize, X], normal));
  for (let i = 0; i < text.numLayers; i++) {
    const layer = `model.layers.${i}`;
    const gateUp: [string, number][] = [
      [`${layer}.mlp.gate_proj.weight`, text.intermediateSize],
      [`${layer}.mlp.up_proj.weight`, text.intermediateSize],
    ];
    specs.push(
      plainSpec(`${layer}.input_layernorm.weight`, [X], ones),
      fusedSpec(`${layer}.self_attn.qkv_proj.weight`, qkv(layer, "weight"), [X], normal),
      fusedSpec(`${layer}.self_attn.qkv_proj.bias`, qkv(layer, "bias"), [], zeros),
      plainSpec(`${layer}.self_attn.o_proj.weight`, [X, text.numHeads * dim], normal),
      plainSpec(`${layer}.post_attention_layernorm.weight`, [X], ones),
      fusedSpec(`${layer}.mlp.gate_up_proj.weight`, gateUp, [X], normal),
      plainSpec(`${layer}.mlp.down_proj.weight`, [X, text.intermediateSize], normal),
    );
  }
  specs.push(plainSpec("model.norm.weight", [X], ones));
  if (!tieWordEmbeddings) specs.push(plainSpec("lm_head.weight", [text.vocabSize, X], normal));
  return specs;
}

/** Parts of the model: what a pass uses together, and walks back together. */
export const PARTS = {
  patchEmbed: "visual.patch_embed",
  block: (i: number) => `visual.blocks.${i}`,
  merger: "visual.merger",
  embedding: "model.embed_tokens",
  layer: (i: number) => `model.layers.${i}`,
  head: "head", // the final norm and, unless that is the embedding, the head
};

const NAMED_AFTER_THEIR_PART =
  /^((?:model\.layers|visual\.blocks)\.\d+|visual\.patch_embed|visual\.merger|model\.embed_tokens)\./;

/** The part that a parameter belongs to. */
export function partOf(parameter: string): string {
  return NAMED_AFTER_THEIR_PART.exec(parameter)?.[1] ?? PARTS.head;
}

/** Neighbours of one part each. */
export function byPart<T extends { name: string }>(parameters: readonly T[]): T[][] {
  const groups: T[][] = [];
  for (const [i, parameter] of parameters.entries()) {
    const before = parameters[i - 1];
    if (before === undefined || partOf(before.name) !== partOf(parameter.name)) groups.push([]);
    groups.at(-1)?.push(parameter);
  }
  return groups;
}

/** The part that is in use throughout a pass because another one uses it too: an embedding that is the head. Null without one. */
export function lastingPart(parameters: readonly string[]): string | null {
  const isTied = !parameters.includes("lm_head.weight");
  return isTied && parameters.some((name) => partOf(name) === PARTS.embedding) ? PARTS.embedding : null;
}

/** The parameters grouped as the forward pass reads them. The tensors are the parameters' own. */
export function groupWeights(
  config: Qwen2VLConfig,
  parameters: readonly Parameter[],
): { text: TextWeights; vision: VisionWeights } {
  const byName = new Map(parameters.map((p) => [p.name, p.tensor]));
  const get = (name: string): Tensor => {
    const tensor = byName.get(name);
    invariant(tensor, `no parameter ${name}`);
    return tensor;
  };
  const affine = (name: string): Affine => ({ weight: get(`${name}.weight`), bias: get(`${name}.bias`) });
  const embedding = get("model.embed_tokens.weight");
  return {
    text: {
      embedding,
      layers: Array.from({ length: config.text.numLayers }, (_, i) => {
        const layer = `model.layers.${i}`;
        return {
          inputNorm: get(`${layer}.input_layernorm.weight`),
          qkv: get(`${layer}.self_attn.qkv_proj.weight`),
          qkvBias: get(`${layer}.self_attn.qkv_proj.bias`),
          o: get(`${layer}.self_attn.o_proj.weight`),
          mlpNorm: get(`${layer}.post_attention_layernorm.weight`),
          gateUp: get(`${layer}.mlp.gate_up_proj.weight`),
          down: get(`${layer}.mlp.down_proj.weight`),
        };
      }),
      norm: get("model.norm.weight"),
      head: config.tieWordEmbeddings ? embedding : get("lm_head.weight"),
    },
    vision: {
      patchEmbed: get("visual.patch_embed.proj.weight"),
      blocks: Array.from({ length: config.vision.depth }, (_, i) => {
        const block = `visual.blocks.${i}`;
        return {
          norm1: affine(`${block}.norm1`),
          qkv: affine(`${block}.attn.qkv`),
          proj: affine(`${block}.attn.proj`),
          norm2: affine(`${block}.norm2`),
          fc1: affine(`${block}.mlp.fc1`),
          fc2: affine(`${block}.mlp.fc2`),
        };
      }),
      mergerNorm: affine("visual.merger.ln_q"),
      merger1: affine("visual.merger.mlp.0"),
      merger2: affine("visual.merger.mlp.2"),
    },
  };
}
