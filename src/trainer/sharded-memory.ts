/** What of weights, reference, gradients and optimizer is on each of several ranks: plain arithmetic over a model's shape, no tensor. */

import type { Config } from "../config/schema.ts";
import { loraOf } from "../config/trained-parts.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { adapterSpecs } from "../model/qwen2vl/lora-sites.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { arenaElements } from "./bucket-arena.ts";
import { type BucketLayout, bucketLayout, bytesPerParameter, stagingBytes } from "./flat-layout.ts";
import { isTrained } from "./trained.ts";

/** Bytes on a rank's device, and on its host. */
export interface StateBytes {
  weights: number;
  reference: number;
  gradients: number;
  optimizer: number;
  host: number;
}

/** What each of `ranks` processes holds. With one of them nothing is cut up, whatever the knobs say. */
export function stateBytes(config: Config, shape: Qwen2VLConfig, ranks: number): StateBytes {
  const item = config.dtype === "bfloat16" ? 2 : 4;
  const lora = loraOf(config);
  const all = sizesOf(parameterSpecs(shape));
  const isOwn = isTrained(config);
  const own = lora === null ? all.filter(isOwn) : sizesOf(adapterSpecs(shape, lora));
  const frozen = sum(all.filter((one) => !isOwn(one)));
  const every = bucketLayout(all, ranks);
  const trained = bucketLayout(own, ranks);
  const plain = sum(all);
  const share = trained.size / ranks;
  const per = bytesPerParameter(config);
  const cut = (layout: BucketLayout, doIt: boolean, whole: number) =>
    ranks > 1 && doIt ? layout.size / ranks + arenaElements(layout) : whole;
  const { shardGradients, shardReference } = config.distributed;
  return {
    weights: ((ranks > 1 ? trained.size : sum(own)) + frozen) * item,
    reference: lora === null ? cut(every, shardReference, plain) * item : 0, // the model without its adapter
    gradients: cut(trained, shardGradients, trained.size) * per.gradients,
    optimizer: share * per.device + stagingBytes(config, share),
    host: share * per.host,
  };
}

function sum(some: readonly { numel: number }[]): number {
  return some.reduce((all, { numel }) => all + numel, 0);
}

function sizesOf(specs: readonly { name: string; shape: readonly number[] }[]): { name: string; numel: number }[] {
  return specs.map(({ name, shape }) => ({ name, numel: shape.reduce((a, b) => a * b, 1) }));
}
