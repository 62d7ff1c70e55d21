/**
 * Where a Qwen2-VL can have adapters: beside which weights, and which of Hugging Face's modules these are. Names are those of Qwen2-VL's original layout.
 */

import { fusedSpec, type ParameterSpec } from "../parameter.ts";
import { headDim, type Qwen2VLConfig } from "./config.ts";

/** A weight with an adapter: one or several modules side by side that read the same input. */
export interface LoraSite {
  weight: string; // `<weight>.weight` is the parameter
  part: { kind: "layer" | "block"; index: number; slot: "qkv" | "o" | "gateUp" | "down" | "proj" | "fc1" | "fc2" };
  columns: number; // of the input, K
  modules: { name: string; begin: number; end: number }[]; // rows of the weight
}

/** Modules of a layer or a block: [name, rows]. */
type Modules = [name: string, rows: number][];

/** The sites of all layers at which one of the targets (q_proj, fc1, ...) is, in the order of the forward pass. */
export function loraSites(config: Qwen2VLConfig, targets: readonly string[]): LoraSite[] {
  const { text, vision } = config;
  const sites: LoraSite[] = [];
  const add = (part: LoraSite["part"], weight: string, columns: number, prefix: string, all: Modules) => {
    let row = 0;
    const modules: LoraSite["modules"] = [];
    for (const [name, rows] of all) {
      if (targets.includes(name)) modules.push({ name: `${prefix}.${name}`, begin: row, end: row + rows });
      row += rows;
    }
    if (modules.length > 0) sites.push({ weight, part, columns, modules });
  };

  const E = vision.embedDim;
  const F = E * vision.mlpRatio;
  for (let index = 0; index < vision.depth; index++) {
    const block = `visual.blocks.${index}`;
    const at = (slot: LoraSite["part"]["slot"]) => ({ kind: "block" as const, index, slot });
    add(at("qkv"), `${block}.attn.qkv`, E, `${block}.attn`, [["qkv", 3 * E]]);
    add(at("proj"), `${block}.attn.proj`, E, `${block}.attn`, [["proj", E]]);
    add(at("fc1"), `${block}.mlp.fc1`, E, `${block}.mlp`, [["fc1", F]]);
    add(at("fc2"), `${block}.mlp.fc2`, F, `${block}.mlp`, [["fc2", E]]);
  }

  const X = text.hiddenSize;
  const I = text.intermediateSize;
  const [Q, KV] = [text.numHeads * headDim(config), text.numKvHeads * headDim(config)];
  for (let index = 0; index < text.numLayers; index++) {
    const layer = `model.layers.${index}`;
    const at = (slot: LoraSite["part"]["slot"]) => ({ kind: "layer" as const, index, slot });
    const attention = `${layer}.self_attn`;
    const qkv: Modules = [
      ["q_proj", Q],
      ["k_proj", KV],
      ["v_proj", KV],
    ];
    const gateUp: Modules = [
      ["gate_proj", I],
      ["up_proj", I],
    ];
    add(at("qkv"), `${attention}.qkv_proj`, X, attention, qkv);
    add(at("o"), `${attention}.o_proj`, Q, attention, [["o_proj", X]]);
    add(at("gateUp"), `${layer}.mlp.gate_up_proj`, X, `${layer}.mlp`, gateUp);
    add(at("down"), `${layer}.mlp.down_proj`, I, `${layer}.mlp`, [["down_proj", X]]);
  }
  return sites;
}

/** A and B of every site, in the order of the forward pass: what is beside one weight is one parameter each. */
export function adapterSpecs(
  config: Qwen2VLConfig,
  { rank, targets }: { rank: number; targets: readonly string[] },
): ParameterSpec[] {
  return loraSites(config, targets).flatMap(({ weight, columns, modules }): [ParameterSpec, ParameterSpec] => [
    fusedSpec(
      `${weight}.lora_A.weight`,
      modules.map(({ name }) => [`${name}.lora_A.weight`, rank]),
      [columns],
      { constant: 0 },
    ),
    fusedSpec(
      `${weight}.lora_B.weight`,
      modules.map(({ name, begin, end }) => [`${name}.lora_B.weight`, end - begin]),
      [rank],
      { constant: 0 },
    ),
  ]);
}
