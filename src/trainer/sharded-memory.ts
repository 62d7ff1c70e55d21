/** What of weights, reference, gradients and optimizer is on each of several ranks: plain arithmetic over a model's shape, no tensor. */

import type { Config } from "../config/schema.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { bytesPerParameter, flatLayout, stagingBytes } from "./flat-layout.ts";

/** Bytes on a rank's device, and on its host. */
export interface StateBytes {
  weights: number;
  reference: number;
  gradients: number;
  optimizer: number;
  host: number;
}

/** Elements by bucket, each of which is cut into equal parts by itself, filled up to whole parts. */
type Buckets = ReadonlyMap<string, number>;

/** What is gathered or reduced together: a layer, a block, the embedding, the head with its norm, either end of the tower. */
function bucketsOf(shape: Qwen2VLConfig, ranks: number, wanted: (name: string) => boolean): Buckets {
  const counts = new Map<string, number[]>();
  for (const { name, shape: sizes } of parameterSpecs(shape)) {
    if (!wanted(name)) continue;
    const bucket = /^(visual\.blocks|model\.layers)\.\d+|^visual\.\w+|^model\.embed_tokens/.exec(name)?.[0] ?? "head";
    counts.set(bucket, [...(counts.get(bucket) ?? []), elements(sizes)]);
  }
  return new Map([...counts].map(([bucket, some]) => [bucket, flatLayout(some, ranks).size]));
}

/** Elements of the place where whole buckets lie for a while: the largest one or two layers; with a tied head the embedding beside all others. */
function arenaElements(buckets: Buckets, tied: boolean): number {
  const embedding = tied ? (buckets.get(EMBEDDING) ?? 0) : 0;
  const others = [...buckets].filter(([name]) => !(tied && name === EMBEDDING));
  const largest = (some: typeof others) => Math.max(0, ...some.map(([, size]) => size));
  return embedding + Math.max(largest(others), 2 * largest(others.filter(([name]) => /\d$/.test(name))));
}

const EMBEDDING = "model.embed_tokens";

/** What each of `ranks` processes holds. With one of them nothing is cut up, whatever the knobs say. */
export function stateBytes(config: Config, shape: Qwen2VLConfig, ranks: number): StateBytes {
  const item = config.dtype === "bfloat16" ? 2 : 4;
  const { freezeVision } = config.model;
  const every = bucketsOf(shape, ranks, () => true);
  const trained = bucketsOf(shape, ranks, (name) => !(freezeVision && name.startsWith("visual.")));
  const frozen = freezeVision ? sum(bucketsOf(shape, 1, (name) => name.startsWith("visual."))) : 0;
  const plain = parameterSpecs(shape).reduce((all, spec) => all + elements(spec.shape), 0);
  const flat = sum(trained);
  const share = flat / ranks;
  const per = bytesPerParameter(config);
  const cut = (buckets: Buckets, doIt: boolean, whole: number) =>
    ranks > 1 && doIt ? sum(buckets) / ranks + arenaElements(buckets, shape.tieWordEmbeddings) : whole;
  const { shardGradients, shardReference } = config.distributed;
  return {
    weights: (ranks > 1 ? flat + frozen : plain) * item,
    reference: cut(every, shardReference, plain) * item,
    gradients: cut(trained, shardGradients, flat) * per.gradients,
    optimizer: share * per.device + stagingBytes(config, share),
    host: share * per.host,
  };
}

function sum(buckets: Buckets): number {
  return [...buckets.values()].reduce((a, b) => a + b, 0);
}

function elements(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}
