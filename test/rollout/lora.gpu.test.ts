/** Sampling with an adapter beside the weights: recorded steps, other numbers in the adapter, the trainer's pass. */

import { expect } from "vitest";
import { Adapter } from "../../src/model/adapter.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { normal } from "../../src/random.ts";
import { fusedDecodeFits } from "../../src/rollout/fused-decode-plan.ts";
import { type RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import { noGrad } from "../../src/torch/autograd.ts";
import { copy_, mul_ } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import type { RolloutGroup } from "../../src/types.ts";
import { gpuTest } from "../setup/gpu.ts";
import { decoder, passLogprobs, tinyModel, tinyPrompt } from "./support.ts";

const TARGETS = [
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
  "qkv",
  "proj",
  "fc1",
  "fc2",
];
const options: RolloutOptions = { groupSize: 5, maxNewTokens: 40, temperature: 1, topK: 0, topP: 1, seed: 11, step: 2 };
const prompts = [tinyPrompt("a", 7), tinyPrompt("b", 13, true), tinyPrompt("c", 300, true), tinyPrompt("d", 65)];

function adaptedModel(): Qwen2VL {
  const base = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true });
  const settings = { rank: 8, alpha: 8, rslora: false, dropout: 0.5, targets: TARGETS }; // sampling drops nothing
  const adapter = Adapter.create(base.config, settings, { device: "cuda", dtype: "bfloat16", seed: 4 });
  for (const { name, tensor } of adapter.parameters) {
    if (!name.includes("lora_B")) continue;
    const noise = Float32Array.from({ length: tensor.numel }, (_, i) => 0.1 * normal(5, name, i));
    scope(() => noGrad(() => copy_(tensor, fromArray(noise, tensor.shape))));
  }
  return base.withAdapter(adapter);
}

function sample(model: Qwen2VL, cudaGraph = true) {
  using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent: 12 }, cudaGraph });
  return sampler.rolloutGroups(prompts, options);
}
const bitsOf = ({ completions }: RolloutGroup) => completions.map(({ ids, logprobs }) => [ids, logprobs]);

gpuTest(
  "a replayed step with an adapter has the bits of single kernels, and the adapter's numbers of the moment",
  () => {
    using model = adaptedModel();
    if (!fusedDecodeFits(model)) return; // no kernels here
    const before = sample(model);
    expect(before.map(bitsOf)).toEqual(sample(model, false).map(bitsOf));
    using base = model.withoutAdapter();
    expect(sample(base).map(bitsOf)).not.toEqual(before.map(bitsOf));

    using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent: 12 } });
    for (let call = 0; call < 3; call++) sampler.rolloutGroups(prompts, options);
    for (const { tensor } of model.adapter?.parameters ?? []) noGrad(() => mul_(tensor, 1.5));
    const after = sampler.rolloutGroups(prompts, options);
    expect(sampler.stats.captureS).toBe(0);
    expect(after.map(bitsOf)).not.toEqual(before.map(bitsOf));
    expect(after.map(bitsOf)).toEqual(sample(model).map(bitsOf));
  },
);

gpuTest("log-probabilities with an adapter stay as close to the packed pass as without one", () => {
  using model = adaptedModel();
  using base = model.withoutAdapter();
  for (const one of [model, base]) {
    const groups = sample(one);
    const recorded = groups.flatMap(({ completions }) => completions.flatMap(({ logprobs }) => Array.from(logprobs)));
    const gaps = passLogprobs(one, groups).map((value, i) => Math.abs(value - (recorded[i] as number)));
    expect(gaps.reduce((a, b) => a + b) / gaps.length).toBeLessThan(0.03);
  }
});
