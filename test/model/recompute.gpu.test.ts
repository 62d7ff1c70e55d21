/** Recomputation on CUDA in bfloat16: the same log-probabilities bit for bit, the same gradients but for atomic sums, and the memory the table says. */

import { expect } from "vitest";
import { packGroups } from "../../src/model/packed.ts";
import { parseConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { textLayerCost, visionBlockCost } from "../../src/model/recompute.ts";
import type { Recompute } from "../../src/model/tape.ts";
import { memoryStats } from "../../src/torch/cuda.ts";
import { scope } from "../../src/torch/scope.ts";
import { gpuTest } from "../setup/gpu.ts";
import { gradientsOf, randomGroup, relativeError } from "./support.ts";

const LEVELS: Recompute[] = ["none", "norms", "mlp", "layer"];
const config = parseConfig({
  model_type: "qwen2_vl",
  vocab_size: 64,
  hidden_size: 512,
  intermediate_size: 2048,
  num_hidden_layers: 6,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  rope_scaling: { type: "mrope", mrope_section: [8, 12, 12] },
  image_token_id: 56,
  video_token_id: 57,
  vision_start_token_id: 58,
  vision_end_token_id: 59,
  eos_token_id: 55,
  vision_config: { depth: 6, embed_dim: 320, hidden_size: 512, mlp_ratio: 4, num_heads: 4, patch_size: 2 },
});
const model = () => {
  const made = Qwen2VL.random(config, { device: "cuda", dtype: "bfloat16", seed: 5 });
  for (const { tensor } of made.parameters) tensor.setRequiresGrad(true);
  return made;
};

gpuTest("logprobs to the last bit; gradients but for the order of flash attention's atomic sums", () => {
  using policy = model();
  const groups = [
    randomGroup(config, 1, { videos: [[4, 8, 12]], images: [[1, 4, 4]], completions: [70, 33, 1] }),
    randomGroup(config, 2, { completions: [9] }),
  ];
  const weights = Float64Array.from({ length: 113 }, (_, i) => Math.sin(i));
  const kept = gradientsOf(policy, groups, weights);
  const twice = gradientsOf(policy, groups, weights); // how far two runs of the same are apart
  for (const level of LEVELS.slice(1)) {
    const again = gradientsOf(policy, groups, weights, { recompute: level });
    expect(again.logprobs, level).toEqual(kept.logprobs);
    for (const [name, values] of again.gradients) {
      const expected = kept.gradients.get(name) as number[];
      const noise = relativeError(twice.gradients.get(name) as number[], expected);
      expect(relativeError(values, expected), `${level} ${name}`).toBeLessThan(Math.max(3 * noise, 1e-2));
    }
  }
});

gpuTest.each(LEVELS)("%s holds what the table says", (level) => {
  using policy = model();
  const group = randomGroup(config, 3, { videos: [[8, 32, 32]], completions: [500, 500, 500] });
  const packed = packGroups([group]);
  const rows = { text: packed.ids.length, vision: 8 * 32 * 32 };
  const held = (recompute: Recompute) =>
    scope(() => {
      const before = memoryStats().allocated;
      using pass = policy.pass(packed, { grad: true, recompute });
      expect(pass.logprobs.size(0)).toBe(1500);
      return memoryStats().allocated - before;
    });
  held(level); // what is made once and stays
  const bytes = ({ kept, kept32 }: { kept: number; kept32: number }) => 2 * kept + 4 * kept32;
  const layers =
    config.text.numLayers * rows.text * bytes(textLayerCost(config, level)) +
    config.vision.depth * rows.vision * bytes(visionBlockCost(config, level, true));
  // pixels, the merger, norms' scales, what the head keeps, rounding of blocks
  expect(held(level)).toBeGreaterThan(layers);
  expect(held(level)).toBeLessThan(1.15 * layers + 40e6);
});
