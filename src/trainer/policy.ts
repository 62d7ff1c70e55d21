/** The model that a run trains: with `lora` a frozen one with an adapter beside it, which is all that checkpoints keep then. */

import path from "node:path";
import { namedBase } from "../config/adapter-folder.ts";
import type { Config } from "../config/schema.ts";
import { loraOf } from "../config/trained-parts.ts";
import { CheckpointError } from "../errors.ts";
import { Adapter, type LoraSettings } from "../model/adapter.ts";
import { ADAPTER_CONFIG, adapterContent, loadAdapter } from "../model/peft.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { saveFolder } from "../model/weights.ts";
import { loadModel, openModel } from "./assemble.ts";
import { adapterFolder, modelFolder } from "./checkpoint.ts";

/** As a run begins with it, or as a checkpoint of the run holds it. */
export function openPolicy(config: Config, checkpoint: string | undefined): Qwen2VL {
  const lora = loraOf(config);
  if (lora === null) return checkpoint === undefined ? openModel(config) : loadModel(modelFolder(checkpoint), config);
  const base = openModel(config);
  try {
    const folder = checkpoint === undefined ? config.lora?.path : adapterFolder(checkpoint);
    const adapter =
      folder === undefined
        ? Adapter.create(base.config, lora, { device: base.device, dtype: base.dtype, seed: config.seed })
        : readAdapter(folder, base, lora);
    return base.withAdapter(adapter);
  } catch (error) {
    base[Symbol.dispose]();
    throw error;
  }
}

/** @throws CheckpointError where it is not of the rank, alpha and targets that the config asks for */
function readAdapter(folder: string, base: Qwen2VL, wanted: LoraSettings): Adapter {
  const { dropout } = wanted; // of the run: it is nothing that an adapter has
  const adapter = loadAdapter(folder, base.config, { device: base.device, dtype: base.dtype, dropout });
  const describe = ({ rank, alpha, rslora, targets }: LoraSettings) =>
    `rank ${rank}, alpha ${alpha}${rslora ? ", rslora" : ""}, targets ${[...targets].sort().join(", ")}`;
  const [found, expected] = [describe(adapter.settings), describe(wanted)];
  if (found === expected) return adapter;
  adapter[Symbol.dispose]();
  throw new CheckpointError(
    path.join(folder, ADAPTER_CONFIG),
    `is an adapter of ${found}; expected ${expected}: set lora.rank, alpha, rslora, parts and targets to what it is`,
  );
}

/** Writes a Hugging Face folder of the policy, an adapter merged into it; the adapter by itself goes into `adapter/`. */
export function savePolicy(model: Qwen2VL, folder: string, config: Config): void {
  model.save(folder, { copyFrom: config.model.path });
  if (model.adapter !== null)
    saveFolder(path.join(folder, "adapter"), { ...adapterContent(model.adapter, namedBase(config)), copies: [] });
}
