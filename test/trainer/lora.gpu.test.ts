/** Adapters on a GPU: sampling through recorded graphs with the adapter that is trained. */

import { rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { gpuTest } from "../setup/gpu.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

gpuTest(
  "bfloat16: with an adapter on both parts sampler and trainer agree, memory stays, a resumed run goes on",
  async () => {
    const config: Config = {
      ...tinyConfig(world, "half", {
        lora: { rank: 4, alpha: 8, parts: ["language", "vision"] },
        optimizer: { learningRate: 1e-2 },
        trainer: { questionsPerStep: 3, steps: 4, saveEvery: 2 },
      }),
      device: "cuda",
      dtype: "bfloat16",
    };
    await trainGrpo(config);
    rmSync(path.join(config.runDir, "checkpoint-4"), { recursive: true });
    expect(await trainGrpo(config, { resume: true })).toMatchObject({ step: 4, finished: true });
    const lines = readMetrics(path.join(config.runDir, "metrics.jsonl"));
    expect(lines).toHaveLength(4);
    for (const line of lines) {
      // The adapter that samples is the one that is trained: one that graphs had recorded before an update would be further off with every step.
      expect(line["rollout/logprob_gap_mean"]).toBeLessThan(0.05);
      expect(line["grad/norm"]).toBeGreaterThan(0);
    }
    expect(lines[0]?.["loss/kl"]).toBeLessThan(1e-3);
    expect(lines.at(-1)?.["loss/kl"]).toBeGreaterThan(lines[0]?.["loss/kl"] as number);
    expect(lines[1]?.["memory/live_tensors"]).toBe(lines[0]?.["memory/live_tensors"]);
  },
);
