/** The memory plan against peaks of real runs: torch's allocator on H200s, `memory/peak_gib` and `memory/live_gib` of metrics.jsonl. */

import { expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";
import { fitOf } from "../../src/trainer/memory-fit.ts";
import { memoryParts, type PlanSetting, peakBytes } from "../../src/trainer/plan.ts";

const GIB = 2 ** 30;
const H200 = 139.8 * GIB;
const seven = releasedConfig("7B");
/** Prompts of a 16-frame video and an image at 252 x 252, completions that never end before their limit. */
const size = { prompt: 954, vision: 729, completion: 256 };

/** Eight questions a GPU, no question twice. */
const run = (ranks: number, more: object = {}): Config =>
  configSchema.parse({
    model: { path: "unused", init: "random", recompute: "none" },
    device: "cuda",
    dtype: "bfloat16",
    rollout: { groupSize: 8, maxNewTokens: 256, ignoreEos: true },
    trainer: { steps: 20, questionsPerStep: 8 * ranks, klCoef: 0.04, tokensPerPack: 3072 },
    optimizer: { moments: "bfloat16" },
    ...more,
  });
const gibOf = (ranks: number, setting: PlanSetting = {}) => {
  const parts = memoryParts("grpo", run(ranks), seven, size, { ranks, records: 1000, device: H200, ...setting });
  const live = parts.reduce((sum, { bytes, during }) => sum + (during === "always" ? bytes : 0), 0);
  return { peak: peakBytes(parts) / GIB, live: live / GIB };
};

// 7B with random weights, all of it trained, a whole reference.
const MEASURED_PEAK = { 1: 109.4, 2: 86.17 } as const;
const MEASURED_LIVE_2 = 70.78; // between steps

test.each([1, 2] as const)("7B on %i GPU(s): within 5 %% of the measured peak", (ranks) => {
  const { peak } = gibOf(ranks);
  expect(Math.abs(peak / MEASURED_PEAK[ranks] - 1)).toBeLessThan(0.05);
});

test("what stays between steps is the state and the small key/value cache that the sampler keeps", () => {
  const { live } = gibOf(2);
  expect(Math.abs(live / MEASURED_LIVE_2 - 1)).toBeLessThan(0.01);
  // A cache of more than 1/32 of the device goes before the update.
  const cacheOf = (questionsPerStep: number) =>
    memoryParts("grpo", run(1, { trainer: { questionsPerStep } }), seven, size, { device: H200 }).find(({ name }) =>
      name.startsWith("KV cache"),
    );
  expect(cacheOf(8)?.during).toBe("always");
  expect(cacheOf(32)?.during).toBe("rollout");
});

test("the run that was measured on one GPU fits there, by the plan too, and not on 100 GiB", () => {
  const at = { stage: "grpo", config: run(1), shape: seven, size, ranks: 1, records: 1000 } as const;
  expect(fitOf({ ...at, device: H200 }).verdict).toBe("fits");
  expect(fitOf({ ...at, device: 112 * GIB }).verdict).toBe("tight");
  expect(fitOf({ ...at, device: 100 * GIB }).verdict).toBe("cannot");
});
