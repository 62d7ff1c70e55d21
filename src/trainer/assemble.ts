/** Builds from a config what training and evaluation run on: model, processor, prompt loader, sampler, data. */

import path from "node:path";
import { requireData } from "../config/check.ts";
import type { Config } from "../config/schema.ts";
import { isVisionFrozen } from "../config/trained-parts.ts";
import { BadSamples } from "../data/bad-samples.ts";
import { readDataset } from "../data/datasets.ts";
import { PromptLoader } from "../data/loader.ts";
import { Processor } from "../data/processor.ts";
import type { Parameter } from "../model/parameter.ts";
import { loadAdapter } from "../model/peft.ts";
import { readConfig } from "../model/qwen2vl/config.ts";
import { Qwen2VL } from "../model/qwen2vl/model.ts";
import { Sampler } from "../rollout/sampler.ts";
import { setDeterministic, setDevice, setNumThreads } from "../torch/cuda.ts";
import type { Device, DType } from "../torch/tensor.ts";
import type { Sample } from "../types.ts";
import { VisionFeatures } from "./vision-features.ts";

/**
 * The model as a run starts with it: model.path's weights or, with `model.init: random`, weights drawn with the run's seed; model.adapter merged into
 * them.
 */
export function openModel(config: Config): Qwen2VL {
  const model =
    config.model.init === "random"
      ? Qwen2VL.random(readConfig(config.model.path), { ...placement(config), seed: config.seed })
      : Qwen2VL.load(config.model.path, placement(config));
  try {
    using adapter = adapterToMerge(config);
    adapter?.mergeInto(model.parameters);
    return model;
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

/** What openModel() makes a model of, one part of it after the other. They belong to the caller. */
export function* openParts(config: Config): Generator<Parameter[]> {
  using adapter = adapterToMerge(config);
  const parts =
    config.model.init === "random"
      ? Qwen2VL.randomParts(readConfig(config.model.path), { ...placement(config), seed: config.seed })
      : Qwen2VL.loadParts(config.model.path, placement(config));
  for (const parameters of parts) {
    adapter?.mergeInto(parameters);
    yield parameters;
  }
}

function adapterToMerge({ model: { path, adapter }, ...config }: Config) {
  return adapter === undefined ? null : loadAdapter(adapter, readConfig(path), placement(config));
}

/** The policy from another Hugging Face folder, e.g. a checkpoint's, on the device and in the dtype of the config. */
export function loadModel(folder: string, config: Config): Qwen2VL {
  return Qwen2VL.load(folder, placement(config));
}

/**
 * What turns questions into prompts and prompts into completions for one model. Closing it, before the model goes, ends the media threads
 * and frees what the sampler holds on the device.
 */
export interface Pipeline {
  processor: Processor;
  loader: PromptLoader;
  sampler: Sampler;
  /** Where the tower is frozen: what the sampler's tower has said of the questions it knows. */
  features: VisionFeatures | null;
  close(): Promise<void>;
}

/** @param bad counts bad samples together with others of the same run */
export async function openPipeline(config: Config, model: Qwen2VL, bad?: BadSamples): Promise<Pipeline> {
  const processor = await Processor.load(config.model.path, config.data);
  const features = isVisionFrozen(config) ? new VisionFeatures(model) : null;
  const served = features?.serving(model) ?? model;
  const sampler = new Sampler({ model: served, tokenizer: processor.tokenizer, config: config.rollout });
  const loader = new PromptLoader({ processor, config: config.data, ...(bad && { bad }) });
  const close = async () => {
    sampler[Symbol.dispose]();
    features?.[Symbol.dispose]();
    await loader.close();
  };
  return { processor, loader, sampler, features, close };
}

/**
 * The training data: the files of data.train one after the other, options shuffled with the run's seed. An id that occurs in two files
 * gets the later file's name appended, so that ids stay unique.
 */
export async function readTrainingData(config: Config, bad = new BadSamples(config.data)): Promise<Sample[]> {
  requireData(config, "train");
  const seen = new Set<string>();
  const samples: Sample[] = [];
  for (const source of config.data.train) {
    const options = { seed: config.seed, shuffleOptions: true, bad };
    for (const sample of await readDataset(source, options)) {
      let { id } = sample;
      while (seen.has(id)) id = `${id}@${path.basename(source.file)}`;
      seen.add(id);
      samples.push(id === sample.id ? sample : { ...sample, id });
    }
  }
  return samples;
}

/** Selects the CUDA device, the number of CPU threads and the order of sums of the process. */
export function applyDevice(config: Config): void {
  const index = /^cuda:(\d+)$/.exec(config.device)?.[1];
  if (index !== undefined) setDevice(Number(index));
  if (config.threads > 0) setNumThreads(config.threads);
  setDeterministic(config.deterministic);
}

export function deviceOf(config: Pick<Config, "device">): Device {
  return config.device as Device; // the schema's pattern is the type's
}

function placement(config: Pick<Config, "device" | "dtype">): { device: Device; dtype: DType } {
  return { device: deviceOf(config), dtype: config.dtype };
}
