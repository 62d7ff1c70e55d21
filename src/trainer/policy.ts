/** The model that a run trains: with `lora` a frozen one with an adapter beside it, which is all that checkpoints keep then. */

import path from "node:path";
import { namedBase } from "../config/adapter-folder.ts";
import {
  describeMerged,
  type MergedAdapter,
  mergedAdapters,
  mergedIn,
  mergedTexts,
} from "../config/merged-adapters.ts";
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
  const { dropout, targets } = wanted; // the dropout is the run's, nothing that an adapter has
  const adapter = loadAdapter(folder, base.config, { device: base.device, dtype: base.dtype, dropout, targets });
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

/** The adapters in the weights of what openPolicy() opens, without the one that the run trains. */
export function mergedBefore(config: Config, checkpoint: string | undefined): MergedAdapter[] {
  const isRead = checkpoint === undefined || config.lora !== undefined;
  return isRead ? mergedAdapters(config) : mergedIn(modelFolder(checkpoint)); // where model.adapter may be gone by now
}

/**
 * Writes a Hugging Face folder of the policy, an adapter merged into it; the adapter by itself goes into `adapter/`.
 * @param merged adapters in its weights
 * @param place where the folder will be, if not there
 */
export function savePolicy(
  model: Qwen2VL,
  folder: string,
  config: Config,
  { merged, place = folder }: { merged: readonly MergedAdapter[]; place?: string },
): void {
  const own: MergedAdapter[] = [];
  if (model.adapter !== null) {
    const beside = path.join(folder, "adapter");
    saveFolder(beside, { ...adapterContent(model.adapter, namedBase(config)), copies: [] });
    own.push(describeMerged(beside, path.join(place, "adapter")));
  }
  const content = model.folderContent({ copyFrom: config.model.path });
  saveFolder(folder, { ...content, texts: [...content.texts, ...mergedTexts([...merged, ...own])] });
}
