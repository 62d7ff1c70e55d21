/** Two GPUs make the run of one, within what bfloat16 allows. */

import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { deviceCount } from "../../src/torch/cuda.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import type { RankRun } from "./ranks-rank.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

const SCRIPT = fileURLToPath(new URL("ranks-rank.ts", import.meta.url));

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

test.skipIf(deviceCount() < 2)("SFT over 10 steps, and resumed by the other number", async () => {
  const trainer = { questionsPerStep: 8, steps: 10, saveEvery: 5 };
  const losses: number[][] = [];
  for (const ranks of [1, 2]) {
    const tiny = tinyConfig(world, `gpus-${ranks}`, { trainer, optimizer: { learningRate: 1e-4 } });
    const config = { ...tiny, device: "cuda", dtype: "bfloat16" as const };
    const file = path.join(world.folder, `gpus-${ranks}.json`);
    writeFileSync(file, JSON.stringify({ stage: "sft", config, resume: false } satisfies RankRun));
    for (const { status, stderr } of await spawnRanks(ranks, SCRIPT, [file])) expect(status, stderr).toBe(0);
    const longer = { ...config, trainer: { ...config.trainer, steps: 12 } };
    writeFileSync(file, JSON.stringify({ stage: "sft", config: longer, resume: true } satisfies RankRun));
    for (const { status, stderr } of await spawnRanks(3 - ranks, SCRIPT, [file])) expect(status, stderr).toBe(0);
    losses.push(readMetrics(path.join(config.runDir, "metrics.jsonl")).map((line) => line["loss/sft"] as number));
  }
  const [one, two] = losses as [number[], number[]];
  expect(two).toHaveLength(12);
  for (const [i, loss] of one.entries()) expect((two[i] as number) / loss).toBeCloseTo(1, 2);
});
