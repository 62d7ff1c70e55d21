/** The same runs as in grpo.test.ts on a GPU: bfloat16, and float32 against the CPU. */

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

const metricsOf = ({ runDir }: { runDir: string }) => readMetrics(path.join(runDir, "metrics.jsonl"));

gpuTest("bfloat16: sampler and trainer agree, memory stays, a resumed run goes on", async () => {
  const config: Config = {
    ...tinyConfig(world, "half", { trainer: { questionsPerStep: 3, steps: 4, saveEvery: 2, iterations: 2 } }),
    device: "cuda",
    dtype: "bfloat16",
  };
  await trainGrpo(config);
  rmSync(path.join(config.runDir, "checkpoint-4"), { recursive: true });
  expect(await trainGrpo(config, { resume: true })).toMatchObject({ step: 4, finished: true });
  const lines = metricsOf(config);
  expect(lines).toHaveLength(4);
  for (const line of lines) {
    expect(line["rollout/logprob_gap_mean"]).toBeLessThan(0.05);
    expect(line["grad/norm"]).toBeGreaterThan(0);
    expect(line["memory/peak_gib"]).toBeGreaterThan(0);
  }
  expect(lines[1]?.["memory/live_tensors"]).toBe(lines[0]?.["memory/live_tensors"]);
});

gpuTest("float32 on the GPU trains as on the CPU, from the same weights", async () => {
  const start = tinyConfig(world, "start", { trainer: { questionsPerStep: 2, steps: 1 } });
  const { finalDir } = await trainGrpo(start); // random weights differ by device, so both begin with a file
  const lossesOn = async (device: string) => {
    const config: Config = {
      ...tinyConfig(world, `on ${device}`, {
        model: { path: finalDir as string, init: "pretrained" },
        rollout: { groupSize: 4, maxNewTokens: 4 },
        trainer: { questionsPerStep: 2, steps: 1 },
      }),
      device,
    };
    await trainGrpo(config);
    return metricsOf(config)[0] as Record<string, number>;
  };
  const cpu = await lossesOn("cpu");
  const cuda = await lossesOn("cuda");
  for (const name of ["loss/policy", "loss/entropy", "grad/norm"]) {
    expect(cuda[name], name).toBeCloseTo(cpu[name] as number, 3);
  }
});
