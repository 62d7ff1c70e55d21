/**
 * Which adapters are in a model's weights already: merged_adapters.json in its folder, which is written where one was merged. The `final/` of a run made
 * before there was such a file is known by the `adapter/` in it.
 */

import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, readSync, realpathSync } from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.ts";
import type { Config } from "./schema.ts";

const MERGED_ADAPTERS = "merged_adapters.json";
const ADAPTER_WEIGHTS = "adapter_model.safetensors";

export interface MergedAdapter {
  folder: string; // where it was when it was merged
  sha256: string; // of its adapter_model.safetensors
}

type Model = Pick<Config, "model">;

/** @throws ConfigError where model.adapter, or the adapter that lora.path goes on from, is in the weights of model.path already */
export function refuseMergedTwice(config: Model & Pick<Config, "lora">): void {
  const { path: folder, adapter, init } = config.model;
  const merged = init === "pretrained" ? mergedIn(folder) : [];
  if (merged.length === 0) return;
  for (const [knob, added] of [
    ["model.adapter", adapter],
    ["lora.path", config.lora?.path],
  ] as const) {
    if (added === undefined || !existsSync(path.join(added, ADAPTER_WEIGHTS))) continue;
    const { sha256 } = describeMerged(added);
    const isIn = merged.some((one) => one.sha256 === sha256);
    if (!isIn && !isOfRun(added, folder)) continue;
    const problem = isIn
      ? `the weights of ${folder} have ${added} in them already`
      : `${added} is of the run whose adapter the weights of ${folder} have in them already`;
    throw new ConfigError(
      `${knob}: ${problem}, and it would be added twice; leave ${knob} out, or set model.path to the model that it belongs to`,
    );
  }
}

/** The adapters in a model that is read as this config says. */
export function mergedAdapters({ model: { path: folder, adapter, init } }: Model): MergedAdapter[] {
  const read = init === "pretrained" ? mergedIn(folder) : [];
  return adapter === undefined ? read : [...read, describeMerged(adapter)];
}

/** The file that goes with a model; none where no adapter is in it. */
export function mergedTexts(adapters: readonly MergedAdapter[]): { name: string; text: string }[] {
  if (adapters.length === 0) return [];
  return [{ name: MERGED_ADAPTERS, text: `${JSON.stringify({ adapters }, null, 2)}\n` }];
}

/** An adapter as the file of a model that it is merged into names it. @param place where it will be, if not in `folder` */
export function describeMerged(folder: string, place = folder): MergedAdapter {
  return { folder: place, sha256: digest(path.join(folder, ADAPTER_WEIGHTS)) };
}

/** The adapters in the weights of a model's folder. */
export function mergedIn(folder: string): MergedAdapter[] {
  const file = path.join(folder, MERGED_ADAPTERS);
  if (!existsSync(file)) return isFinalOfLora(folder) ? [describeMerged(path.join(folder, "adapter"))] : [];
  const problem = (what: string) => new ConfigError(`${file}: ${what}; remove it if no adapter is in these weights`);
  try {
    const { adapters } = JSON.parse(readFileSync(file, "utf8")) as { adapters?: MergedAdapter[] };
    if (Array.isArray(adapters)) return adapters;
  } catch (error) {
    throw problem(`not valid JSON: ${(error as Error).message}`);
  }
  throw problem("has no list of adapters");
}

/** Whether a folder is the `final/` of a run with lora. */
function isFinalOfLora(folder: string): boolean {
  if (!existsSync(path.join(folder, "adapter", ADAPTER_WEIGHTS))) return false;
  return existsSync(path.join(path.dirname(realpathSync(folder)), "config.yaml"));
}

/** Whether an adapter is one of the run whose `final/` a model is: in it or in a checkpoint beside it, such as `best` leads to. */
function isOfRun(adapter: string, model: string): boolean {
  const place = path.relative(path.dirname(realpathSync(model)), realpathSync(adapter));
  return isFinalOfLora(model) && /^(final|checkpoint-\d+)\/adapter$/.test(place);
}

function digest(file: string): string {
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafe(2 ** 22);
  const descriptor = openSync(file, "r");
  try {
    for (let count = 1; count > 0; ) {
      count = readSync(descriptor, buffer);
      hash.update(buffer.subarray(0, count));
    }
    return hash.digest("hex");
  } finally {
    closeSync(descriptor);
  }
}
