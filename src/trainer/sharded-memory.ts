/** What of weights, reference, gradients and optimizer is on each of several ranks: plain arithmetic over a model's shape, no tensor. */

import type { Config } from "../config/schema.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { parameterSpecs } from "../model/qwen2vl/parameters.ts";
import { arenaElements } from "./bucket-arena.ts";
import { type BucketLayout, bucketLayout, bytesPerParameter, stagingBytes } from "./flat-layout.ts";

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
  const { freezeVision } = config.model;
  const all = parameterSpecs(shape).map(({ name, shape: sizes }) => ({ name, numel: elements(sizes) }));
  const isFrozen = ({ name }: { name: string }) => freezeVision && name.startsWith("visual.");
  const every = bucketLayout(all, ranks);
  const trained = bucketLayout(
    all.filter((one) => !isFrozen(one)),
    ranks,
  );
  const plain = sum(all);
  const share = trained.size / ranks;
  const per = bytesPerParameter(config);
  const cut = (layout: BucketLayout, doIt: boolean, whole: number) =>
    ranks > 1 && doIt ? layout.size / ranks + arenaElements(layout) : whole;
  const { shardGradients, shardReference } = config.distributed;
  return {
    weights: (ranks > 1 ? trained.size + sum(all.filter(isFrozen)) : plain) * item,
    reference: cut(every, shardReference, plain) * item,
    gradients: cut(trained, shardGradients, trained.size) * per.gradients,
    optimizer: share * per.device + stagingBytes(config, share),
    host: share * per.host,
  };
}

function sum(some: readonly { numel: number }[]): number {
  return some.reduce((all, { numel }) => all + numel, 0);
}

function elements(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}
