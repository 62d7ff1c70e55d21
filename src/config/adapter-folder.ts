/** The folder of an adapter where a model's is expected. */

import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.ts";
import type { Config } from "./schema.ts";

const ADAPTER_CONFIG = "adapter_config.json";

/**
 * Where model.path is a folder in PEFT's layout, the model that it names, with this adapter; any other config as it is. A relative name means the
 * working directory's, as everywhere in a config.
 * @throws ConfigError where the adapter names no folder that is there, or model.adapter is set, too
 */
export function withNamedBase(config: Config): Config {
  const { path: folder, adapter } = config.model;
  const file = path.join(folder, ADAPTER_CONFIG);
  if (!existsSync(file) || existsSync(path.join(folder, "config.json"))) return config;
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

function baseOf(file: string): string | null {
  try {
    const { base_model_name_or_path: base } = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    return typeof base === "string" ? base : null;
  } catch (error) {
    throw new ConfigError(`${file}: not valid JSON: ${(error as Error).message}`);
  }
}
