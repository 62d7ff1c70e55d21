/** Folders that a config names for a model or an adapter, and what is there instead: an adapter for a model, a checkpoint or a run for either. */

import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.ts";
import { refuseMergedTwice } from "./merged-adapters.ts";
import type { Config } from "./schema.ts";

const MODEL_CONFIG = "config.json";
const ADAPTER_CONFIG = "adapter_config.json";

/** Where a checkpoint (the first two) or a run keeps what can be read, the likelier one first. */
const INSIDE = ["model", "adapter", "final", "final/adapter", "best/model", "best/adapter"];

/**
 * Where model.path is a folder in PEFT's layout, the model that it names, with this adapter; any other config as it is. A relative name means the
 * working directory's, as everywhere in a config.
 * @throws ConfigError where the adapter names no folder that is there, or model.adapter is set, too; and where a checkpoint or a run is named in the place of
 *   the model or the adapter in it, or an adapter that the model has in its weights already
 */
export function withNamedBase(config: Config): Config {
  const { path: folder, adapter } = config.model;
  refuseOuter("model.path", folder, [MODEL_CONFIG, ADAPTER_CONFIG]);
  refuseOuter("model.adapter", adapter, [ADAPTER_CONFIG]);
  refuseOuter("lora.path", config.lora?.path, [ADAPTER_CONFIG]);
  refuseMergedTwice(config);
  const file = path.join(folder, ADAPTER_CONFIG);
  if (!existsSync(file) || existsSync(path.join(folder, MODEL_CONFIG))) return config;
  if (adapter !== undefined)
    throw new ConfigError(
      `model.path: ${folder} is an adapter, and model.adapter is ${adapter}; name the model that they belong to`,
    );
  const base = baseOf(file);
  if (base === null || !existsSync(base)) {
    const found = base === null ? "names no model" : `names the model ${base}, which is not there`;
    throw new ConfigError(
      `model.path: ${file} ${found}; set model.path to its model's folder and model.adapter to ${folder}`,
    );
  }
  return { ...config, model: { ...config.model, path: base, adapter: folder } };
}

/**
 * The folder that adapters which this config trains name as their model. null where no folder holds its weights: they are drawn at random, or
 * model.adapter is merged into them, without which the new adapter would be beside another model.
 */
export function namedBase({ model }: Pick<Config, "model">): string | null {
  return model.adapter === undefined && model.init === "pretrained" ? model.path : null;
}

/** @throws ConfigError for a folder that has none of `files` itself, but a folder in it that has */
function refuseOuter(knob: string, folder: string | undefined, files: readonly string[]): void {
  if (folder === undefined || !existsSync(folder)) return;
  const holds = (place: string) => files.some((file) => existsSync(path.join(place, file)));
  if (holds(folder)) return;
  const inner = INSIDE.map((name) => path.join(folder, name)).find(holds);
  if (inner === undefined) return;
  const kind = existsSync(path.join(inner, MODEL_CONFIG)) ? "a model" : "an adapter";
  throw new ConfigError(`${knob}: ${folder} is a checkpoint's or a run's folder, with ${kind} in it; set ${inner}`);
}

function baseOf(file: string): string | null {
  try {
    const { base_model_name_or_path: base } = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    return typeof base === "string" ? base : null;
  } catch (error) {
    throw new ConfigError(`${file}: not valid JSON: ${(error as Error).message}`);
  }
}
