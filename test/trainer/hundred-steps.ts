/**
 * A hundred steps of one process and of two ranks, and what rounding alone does to a hundred steps: the same run with its records packed otherwise, so
 * that the same sums are taken in another order. The two ranks may be as far from the one as a few of those are.
 */

import { writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import type { RankRun } from "./ranks-rank.ts";
import { type TinyWorld, tinyConfig } from "./tiny-run.ts";

const SCRIPT = fileURLToPath(new URL("ranks-rank.ts", import.meta.url));
const STEPS = 100;
const RATE = 2e-3;
const PACK = 600; // tokens
/** What differs between two controls is chance: ranks are allowed so many times as much. */
const SLACK = 3;

interface Variant {
  ranks?: number;
  tokensPerPack?: number;
  learningRate?: number;
  distributed?: Partial<Config["distributed"]>;
  device?: string;
}

/** Root mean square of the relative differences of two rows of losses. */
function apart(a: readonly number[], b: readonly number[]): number {
  const squares = a.map((value, i) => ((b[i] as number) / value - 1) ** 2);
  return Math.sqrt(squares.reduce((sum, square) => sum + square, 0) / squares.length);
}

/** @param devices those of runs that are alone; two ranks take one each */
export async function compareHundredSteps(
  world: TinyWorld,
  { dtype, devices }: { dtype: Config["dtype"]; devices: readonly string[] },
): Promise<void> {
  const losses = async (name: string, variant: Variant): Promise<number[]> => {
    const { ranks = 1, tokensPerPack = PACK, learningRate = RATE, distributed = {}, device = devices[0] } = variant;
    const trainer = { questionsPerStep: 6, steps: STEPS, saveEvery: 0, saveFinal: false, tokensPerPack };
    const more = { trainer, optimizer: { learningRate }, distributed };
    const config = { ...tinyConfig(world, name, more), dtype, device: device as string };
    const file = path.join(world.folder, `${name}.json`);
    writeFileSync(file, JSON.stringify({ stage: "sft", config, resume: false } satisfies RankRun));
    for (const { status, stderr } of await spawnRanks(ranks, SCRIPT, [file])) expect(status, stderr).toBe(0);
    const row = readMetrics(path.join(config.runDir, "metrics.jsonl")).map((line) => line["loss/sft"] as number);
    expect(row).toHaveLength(STEPS);
    return row;
  };
  const other = devices.at(-1) as string;
  const [one, finer, coarser, faster] = (await Promise.all([
    losses("one", {}),
    losses("finer", { tokensPerPack: PACK / 4, device: other }),
    losses("coarser", { tokensPerPack: PACK * 4 }),
    losses("faster", { learningRate: 1.1 * RATE, device: other }),
  ])) as [number[], number[], number[], number[]];
  const device = other === "cpu" ? "cpu" : "cuda";
  const [two, sharded] = (await Promise.all([
    losses("two", { ranks: 2, device }),
    losses("sharded", { ranks: 2, device, distributed: { shardGradients: true } }),
  ])) as [number[], number[]];
  expect((one.at(-1) as number) / (one[0] as number)).toBeLessThan(0.7); // it learns
  const rounding = Math.max(apart(one, finer), apart(one, coarser));
  expect(rounding).toBeGreaterThan(0);
  expect(apart(one, faster)).toBeGreaterThan(SLACK * rounding); // a run that is another one is told apart
  expect(apart(one, two)).toBeLessThan(SLACK * rounding);
  expect(apart(one, sharded)).toBeLessThan(SLACK * rounding);
}
