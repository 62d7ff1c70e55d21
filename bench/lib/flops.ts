/** Floating-point operations that a pass needs, counted from shapes: products and attention, each multiplication and addition one operation. */

import type { Packed } from "../../src/model/packed.ts";
import { mediaOf } from "../../src/model/packed.ts";
import { headDim, patchWidth, type Qwen2VLConfig } from "../../src/model/qwen2vl/config.ts";

export interface Flops {
  text: number; // layers, attention included
  vision: number; // tower and merger
  head: number; // of completion tokens
}

/** Of a forward pass; the backward takes twice as many. Each prompt counts once per group, whatever the number of its completions. */
export function forwardFlops(config: Qwen2VLConfig, pack: Packed): Flops {
  const { text } = config;
  const D = headDim(config);
  const tokens = pack.ids.length;
  const perToken =
    text.hiddenSize * (text.numHeads + 2 * text.numKvHeads) * D +
    text.numHeads * D * text.hiddenSize +
    3 * text.hiddenSize * text.intermediateSize;
  const pairs = pack.promptLengths.reduce((sum, prompt, i) => {
    const own = pack.completionLengths[i] ?? [];
    return sum + prompt ** 2 / 2 + own.reduce((all, length) => all + length * prompt + length ** 2 / 2, 0);
  }, 0);
  return {
    text: text.numLayers * (2 * tokens * perToken + 4 * pairs * text.numHeads * D),
    vision: visionFlops(config, pack),
    head: 2 * pack.targets.length * text.hiddenSize * text.vocabSize,
  };
}

function visionFlops(config: Qwen2VLConfig, pack: Packed): number {
  const { depth, embedDim: E, mlpRatio, spatialMergeSize } = config.vision;
  const merged = spatialMergeSize ** 2;
  return mediaOf(pack.groups.map(({ prompt }) => prompt)).reduce((sum, { grid: [t, h, w] }) => {
    const patches = t * h * w;
    const block = 2 * patches * (4 + 2 * mlpRatio) * E * E + 4 * t * (h * w) ** 2 * E;
    const merger = 2 * (patches / merged) * (merged * E) * (merged * E + config.text.hiddenSize);
    return sum + 2 * patches * patchWidth(config) * E + depth * block + merger;
  }, 0);
}
