/** Continuous batching on CUDA: recorded steps, late flags, kept buffers, and the kernels for attention and drawing, on a tiny model they take. */

import { expect } from "vitest";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { randomInt } from "../../src/random.ts";
import { fusedDecodeFits } from "../../src/rollout/fused-decode-plan.ts";
import { type RolloutOptions, Sampler, type SamplerOptions } from "../../src/rollout/sampler.ts";
import { memoryStats } from "../../src/torch/cuda.ts";
import { mul_ } from "../../src/torch/ops.ts";
import type { Prompt, RolloutGroup } from "../../src/types.ts";
import { gpuTest } from "../setup/gpu.ts";
import { decoder, FORBIDDEN, passLogprobs, tinyModel, tinyPrompt } from "./support.ts";

const base: RolloutOptions = { groupSize: 5, maxNewTokens: 40, temperature: 1, topK: 0, topP: 1, seed: 11, step: 2 };
const prompts = [
  tinyPrompt("a", 7),
  tinyPrompt("b", 13, true),
  tinyPrompt("c", 1),
  tinyPrompt("d", 300, true),
  tinyPrompt("e", 77),
  tinyPrompt("f", 65),
  tinyPrompt("g", 20, true),
];

type Layout = Partial<Omit<SamplerOptions, "config" | "model"> & SamplerOptions["config"]>;

function samplerOf(model: Qwen2VL, { maxConcurrent = 256, deterministic = false, ...rest }: Layout = {}): Sampler {
  return new Sampler({ model, tokenizer: decoder, config: { maxConcurrent, deterministic }, ...rest });
}
function sample(model: Qwen2VL, options: Partial<RolloutOptions> = {}, layout: Layout = {}, given: Prompt[] = prompts) {
  using sampler = samplerOf(model, layout);
  return sampler.rolloutGroups(given, { ...base, ...options });
}
const idsOf = (groups: readonly RolloutGroup[]) => groups.map((g) => g.completions.map((c) => Array.from(c.ids)));
const bitsOf = ({ completions }: RolloutGroup) =>
  completions.map(({ ids, logprobs, sampledLogprobs, entropies }) => [ids, logprobs, sampledLogprobs, entropies]);
const limitOf = (prompt: number, completion: number) => 1 + randomInt(40, "limit", prompt, completion);

gpuTest("float32: slots give the tokens of the waves, however many there are", () => {
  using model = tinyModel({ device: "cuda" });
  const waves = idsOf(sample(model, { limitOf }, { attention: "plain" }));
  for (const maxConcurrent of [256, 9, 3]) {
    expect(idsOf(sample(model, { limitOf }, { attention: "fused", maxConcurrent }))).toEqual(waves);
  }
});

gpuTest("bfloat16: completions that take turns at rows have the bits of those that do not", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true, stops: [1000] }); // an id that it has not
  const options = { maxNewTokens: 100, limitOf: (q: number, c: number) => 10 + randomInt(90, "turns", q, c) };
  const layout = { deterministic: true, maxConcurrent: 16 };
  const together = sample(model, options, layout); // 35 completions at 16 rows
  for (const [q, prompt] of prompts.entries()) {
    const limits = { ...options, limitOf: (_: number, c: number) => options.limitOf(q, c) };
    const [alone] = sample(model, limits, layout, [prompt]); // five, without a pause
    expect(bitsOf(alone as RolloutGroup)).toEqual(bitsOf(together[q] as RolloutGroup));
  }
});

gpuTest("a replayed step gives the same bits as single kernels, whatever the options and the slots", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true });
  if (!fusedDecodeFits(model)) return; // no kernels here
  for (const options of [{ limitOf }, { topK: 10, topP: 0.9, temperature: 1.3 }, { topP: 0.7 }, { greedy: true }]) {
    for (const layout of [{}, { maxConcurrent: 12 }, { attention: "per-sequence" as const }]) {
      const single = sample(model, options, { ...layout, cudaGraph: false });
      const replayed = sample(model, options, layout);
      expect(replayed.map(bitsOf)).toEqual(single.map(bitsOf));
    }
  }
});

gpuTest("bfloat16 log-probabilities stay close to the packed pass, and forbidden ids never appear", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true });
  const groups = sample(model, { temperature: 1.5 }, { maxConcurrent: 16 });
  const recorded = groups.flatMap(({ completions }) => completions.flatMap((c) => Array.from(c.logprobs)));
  const gaps = passLogprobs(model, groups).map((value, i) => Math.abs(value - (recorded[i] as number)));
  expect(gaps.reduce((a, b) => a + b) / gaps.length).toBeLessThan(0.03);
  const seen = new Set(idsOf(groups).flat(2));
  expect(FORBIDDEN.some((id) => seen.has(id))).toBe(false);
  for (const { entropies, logprobs } of groups.flatMap(({ completions }) => completions)) {
    expect(entropies.every((h) => h >= 0 && h <= Math.log(96) + 1e-3)).toBe(true);
    expect(logprobs.every((p) => p <= 0)).toBe(true);
  }
});

gpuTest("deterministic: the same bits alone and among others, in any order", () => {
  for (const dtype of ["bfloat16", "float32"] as const) {
    using model = tinyModel({ device: "cuda", dtype, wide: true });
    using sampler = samplerOf(model, { deterministic: true, maxConcurrent: 24 });
    const options = dtype === "bfloat16" ? base : { ...base, maxNewTokens: 6 };
    const together = sampler.rolloutGroups(prompts, options);
    const reversed = sampler.rolloutGroups([...prompts].reverse(), options).reverse();
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = sampler.rolloutGroups([prompt], options);
      expect(bitsOf(alone as RolloutGroup)).toEqual(bitsOf(together[i] as RolloutGroup));
      expect(bitsOf(reversed[i] as RolloutGroup)).toEqual(bitsOf(together[i] as RolloutGroup));
    }
  }
});

gpuTest("what is kept serves the next call: nothing is recorded again, memory stays, new weights count", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true });
  if (!fusedDecodeFits(model)) return;
  using sampler = samplerOf(model, { maxConcurrent: 12 });
  sampler.rolloutGroups(prompts, base);
  expect(sampler.stats.captureS).toBeGreaterThan(0);
  const reserved = () => {
    sampler.rolloutGroups(prompts, base);
    return memoryStats().reserved;
  };
  const warm = [reserved(), reserved(), reserved()].at(-1);
  for (let call = 0; call < 4; call++) reserved();
  expect(reserved()).toBe(warm);
  expect(sampler.stats.captureS).toBe(0);

  const before = sampler.rolloutGroups(prompts, base);
  for (const { tensor } of model.parameters) mul_(tensor, 1.05);
  const after = sampler.rolloutGroups(prompts, base);
  expect(sampler.stats.captureS).toBe(0);
  expect(after.map(bitsOf)).not.toEqual(before.map(bitsOf));
  expect(after.map(bitsOf)).toEqual(sample(model, {}, { maxConcurrent: 12 }).map(bitsOf));
  // other sampling options are another recording
  const cold = sampler.rolloutGroups(prompts, { ...base, temperature: 0.5 });
  expect(cold.map(bitsOf)).toEqual(sample(model, { temperature: 0.5 }, { maxConcurrent: 12 }).map(bitsOf));
});

gpuTest("slots stay full while completions wait", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16", wide: true });
  using sampler = samplerOf(model, { maxConcurrent: 8 });
  const groups = sampler.rolloutGroups(prompts, { ...base, groupSize: 12, limitOf });
  const lengths = groups.flatMap(({ completions }) => completions.map(({ ids }) => ids.length));
  const drawnInSteps = lengths.reduce((sum, length) => sum + length - 1, 0);
  expect(sampler.stats.occupancy).toBeCloseTo(drawnInSteps / sampler.stats.steps / 8, 10);
  // an end is known two to four steps late; the last completions run out alone
  expect(sampler.stats.steps).toBeLessThan((drawnInSteps + 4 * lengths.length) / 8 + 40);
});
