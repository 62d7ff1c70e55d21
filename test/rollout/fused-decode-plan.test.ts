/** The fused decode attention (here the composition behind the operator) against the plain plan: same completions, same log-probabilities. */

import { describe, expect, test } from "vitest";
import { FusedDecodePlan, fusedDecodeFits, KvPool } from "../../src/rollout/fused-decode-plan.ts";
import { type RolloutOptions, Sampler } from "../../src/rollout/sampler.ts";
import { op } from "../../src/torch/dispatch.ts";
import { randn, zeros } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { decoder, tinyModel, tinyPrompt } from "./support.ts";

const options: RolloutOptions = {
  groupSize: 3,
  maxNewTokens: 12,
  temperature: 1,
  topK: 0,
  topP: 1,
  seed: 5,
  step: 1,
};
const prompts = [tinyPrompt("a", 7), tinyPrompt("b", 13, true), tinyPrompt("c", 1)];

describe("fused decode attention", () => {
  test.each([256, 4, 1])("gives the plain plan's completions, %i at a time", (maxConcurrent) => {
    using model = tinyModel();
    const sample = (attention: "fused" | "plain") => {
      using sampler = new Sampler({ model, tokenizer: decoder, config: { maxConcurrent }, attention });
      return sampler.rolloutGroups(prompts, options).flatMap((group) => group.completions);
    };
    const plain = sample("plain");
    for (const [i, completion] of sample("fused").entries()) {
      expect(completion.ids).toEqual(plain[i]?.ids);
      completion.logprobs.forEach((p, t) => {
        expect(p).toBeCloseTo(plain[i]?.logprobs[t] as number, 4);
      });
    }
  });

  test("the kernel is for bfloat16 on CUDA", () => {
    using model = tinyModel();
    expect(fusedDecodeFits(model)).toBe(false);
  });

  test("chunks are few where questions fill the device, and whole blocks long", () => {
    const shape = { layers: 1, group: 2, kvHeads: 4, headDim: 8, promptSlots: 5000, ownSlots: 4 };
    const chunksOf = (lengths: number[]) => {
      using pool = new KvPool({ ...shape, questions: lengths.length }, lengths, { device: "cpu", dtype: "float32" });
      using plan = new FusedDecodePlan(pool);
      return plan.chunking;
    };
    expect(chunksOf([1024, 3])).toEqual({ chunks: 1, chunkKeys: 1024 });
    expect(chunksOf([2500])).toEqual({ chunks: 3, chunkKeys: 896 });
    expect(chunksOf(Array(11).fill(5000))).toEqual({ chunks: 3, chunkKeys: 1792 });
    expect(chunksOf(Array(40).fill(2000))).toEqual({ chunks: 1, chunkKeys: 2048 });
  });

  test("arguments that do not fit are refused with their shapes", () => {
    scope(() => {
      const decodeAttention = op("grove::decode_attention");
      const int = (...size: number[]) => zeros(size, { dtype: "int32" });
      const qkv = randn([2, 8, 4]);
      const own = zeros([2, 3, 2, 4]);
      const call = (arrived: number, chunks: number) =>
        decodeAttention(
          ...[qkv, randn([2, 1, 4]), randn([2, 1, 4]), own, own, zeros([5, 2, 4]), zeros([5, 2, 4])],
          ...[int(1, 2), int(1), int(1), int(2), int(arrived), chunks, 64, 0.5],
        );
      expect(call(4, 1).shape).toEqual([2, 4, 4]);
      expect(() => call(3, 1)).toThrow(/arrived \[4\].*got.*\[3\]/);
      expect(() => call(4, 0)).toThrow(/chunks and chunk_keys must be at least 1/);
    });
  });
});
