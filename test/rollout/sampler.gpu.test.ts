import { expect } from "vitest";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { type RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import { memoryStats } from "../../src/torch/cuda.ts";
import type { RolloutGroup } from "../../src/types.ts";
import { gpuTest } from "../setup/gpu.ts";
import { decoder, FORBIDDEN, passLogprobs, tinyModel, tinyPrompt } from "./support.ts";

const base: RolloutOptions = {
  groupSize: 5,
  maxNewTokens: 40,
  temperature: 1,
  topK: 0,
  topP: 1,
  seed: 11,
  step: 2,
};
const prompts = [tinyPrompt("a", 7), tinyPrompt("b", 13, true), tinyPrompt("c", 1), tinyPrompt("d", 40, true)];

function sample(
  model: Qwen2VL,
  options: Partial<RolloutOptions> = {},
  layout: { graph?: boolean; most?: number } = {},
) {
  const { graph = true, most = 256 } = layout;
  using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent: most }, cudaGraph: graph });
  return sampler.rolloutGroups(prompts, { ...base, ...options });
}
const idsOf = (groups: readonly RolloutGroup[]) => groups.map((g) => g.completions.map((c) => Array.from(c.ids)));
const logprobsOf = (groups: readonly RolloutGroup[]) =>
  groups.flatMap((group) => group.completions.flatMap((c) => Array.from(c.logprobs)));
const largest = (a: number[], b: number[]) => Math.max(...a.map((x, i) => Math.abs(x - (b[i] as number))));

gpuTest("float32 on CUDA gives the CPU's greedy completions", () => {
  using cpu = tinyModel();
  using cuda = tinyModel({ device: "cuda" });
  const expected = sample(cpu, { greedy: true, groupSize: 1 });
  const got = sample(cuda, { greedy: true, groupSize: 1 });
  expect(idsOf(got)).toEqual(idsOf(expected));
  expect(largest(logprobsOf(got), logprobsOf(expected))).toBeLessThan(1e-3);
});

gpuTest("float32 on CUDA draws what the CPU draws, but for rounding at the edges", () => {
  using cpu = tinyModel();
  using cuda = tinyModel({ device: "cuda" });
  for (const options of [{}, { topK: 10, temperature: 0.8 }, { topP: 0.9 }]) {
    const expected = idsOf(sample(cpu, options)).flat();
    const got = idsOf(sample(cuda, options)).flat();
    expect(got.filter((ids, i) => String(ids) === String(expected[i])).length).toBeGreaterThanOrEqual(18); // of 20
  }
});

gpuTest("a replayed step gives the same bits as single kernels, whatever the options", () => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    using model = tinyModel({ device: "cuda", dtype });
    for (const options of [{}, { topK: 10, topP: 0.9, temperature: 1.3 }, { topP: 0.7 }, { greedy: true }]) {
      const replayed = sample(model, options);
      const single = sample(model, options, { graph: false });
      expect(idsOf(replayed)).toEqual(idsOf(single));
      expect(logprobsOf(replayed)).toEqual(logprobsOf(single));
    }
  }
});

gpuTest("waves and rounds do not change float32 completions", () => {
  using model = tinyModel({ device: "cuda" });
  const whole = idsOf(sample(model));
  for (const most of [1, 3, 10]) expect(idsOf(sample(model, {}, { most }))).toEqual(whole);
});

gpuTest("bfloat16 log-probabilities stay close to the packed pass", () => {
  using model = tinyModel({ device: "cuda", dtype: "bfloat16" });
  const groups = sample(model);
  const recorded = logprobsOf(groups);
  const gaps = passLogprobs(model, groups).map((value, i) => Math.abs(value - (recorded[i] as number)));
  expect(gaps.reduce((a, b) => a + b) / gaps.length).toBeLessThan(0.05);
});

gpuTest("float32 log-probabilities equal the packed pass, and forbidden ids never appear", () => {
  using model = tinyModel({ device: "cuda" });
  const groups = sample(model, { temperature: 2 });
  expect(largest(logprobsOf(groups), passLogprobs(model, groups))).toBeLessThan(1e-4);
  expect(
    idsOf(groups)
      .flat(2)
      .some((id) => FORBIDDEN.includes(id)),
  ).toBe(false);
});

gpuTest("memory does not grow from call to call", () => {
  using model = tinyModel({ device: "cuda" });
  using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent: 10 } });
  const reserved = () => {
    sampler.rolloutGroups(prompts, base);
    return memoryStats().reserved;
  };
  const warm = [reserved(), reserved(), reserved()].at(-1);
  for (let call = 0; call < 5; call++) reserved();
  expect(reserved()).toBe(warm);
});
