/** Two GPUs make the run of one, within what bfloat16 allows. */

import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import { hasGpusFor } from "../torch/gpus.ts";
import type { RankRun } from "./ranks-rank.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

const SCRIPT = fileURLToPath(new URL("ranks-rank.ts", import.meta.url));

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const BOTH = { shardGradients: true, shardReference: true };

async function run(ranks: number, stage: RankRun["stage"], config: Config, resume = false): Promise<void> {
  const file = path.join(world.folder, "run.json");
  writeFileSync(file, JSON.stringify({ stage, config, resume } satisfies RankRun));
  for (const { status, stderr } of await spawnRanks(ranks, SCRIPT, [file])) expect(status, stderr).toBe(0);
}

const onGpus = (name: string, more: { [section: string]: object }): Config => {
  return { ...tinyConfig(world, name, more), device: "cuda", dtype: "bfloat16" };
};
const column = ({ runDir }: Config, name: string) =>
  readMetrics(path.join(runDir, "metrics.jsonl")).map((line) => line[name] as number);

/** The losses of 10 steps by `ranks` ranks and of 2 more by `resumedBy`. */
async function tunedBy(name: string, ranks: number, resumedBy: number, distributed: object): Promise<number[]> {
  const trainer = { questionsPerStep: 8, steps: 10, saveEvery: 5 };
  const config = onGpus(name, { trainer, optimizer: { learningRate: 1e-4 }, distributed });
  await run(ranks, "sft", config);
  await run(resumedBy, "sft", { ...config, trainer: { ...config.trainer, steps: 12 } }, true);
  return column(config, "loss/sft");
}

function expectClose(losses: readonly number[], to: readonly number[]): void {
  expect(losses).toHaveLength(to.length);
  for (const [i, loss] of to.entries()) expect((losses[i] as number) / loss).toBeCloseTo(1, 2);
}

test.skipIf(!hasGpusFor(2))("SFT over 10 steps, and resumed by the other number, also sharded", async () => {
  const one = await tunedBy("one", 1, 2, {});
  expect(one).toHaveLength(12);
  expectClose(await tunedBy("two", 2, 1, {}), one);
  expectClose(await tunedBy("sharded", 2, 1, BOTH), one);
});

test.skipIf(!hasGpusFor(8))("SFT on eight GPUs, everything sharded, and resumed by two", async () => {
  expectClose(await tunedBy("eight", 8, 2, BOTH), await tunedBy("alone", 1, 8, {}));
});

test.skipIf(!hasGpusFor(2))(
  "GRPO on two GPUs: the same first step, whatever is sharded, and steps after it",
  async () => {
    const trainer = { questionsPerStep: 6, steps: 4, saveEvery: 0 };
    const rollout = { groupSize: 4, maxNewTokens: 24 };
    const [whole, sharded] = [
      ["whole", {}],
      ["cut", BOTH],
    ].map(([name, distributed]) =>
      onGpus(`grpo-${name}`, { trainer, rollout, distributed: distributed as object }),
    ) as [Config, Config];
    for (const config of [whole, sharded]) await run(2, "grpo", config);
    // The same ranks draw the same completions; until the first update all that differs is how gradients are rounded.
    for (const name of ["loss/total", "loss/kl", "loss/entropy"])
      expect(column(sharded, name)[0], name).toBe(column(whole, name)[0]);
    expect((column(sharded, "grad/norm")[0] as number) / (column(whole, "grad/norm")[0] as number)).toBeCloseTo(1, 1);
    expect(column(sharded, "loss/total")).toHaveLength(4);
    for (const kl of column(sharded, "loss/kl")) expect(kl).toBeLessThan(0.1);
  },
);

test.skipIf(!hasGpusFor(2))(
  "two GPUs: a reference that moves says the same whether it is cut or not, also resumed",
  async () => {
    const optimizer = { learningRate: 1e-4, schedule: "constant" }; // stopped half-way, a run has the rates of one that was not
    const of = (name: string, shardReference: boolean, steps: number): Config => {
      const trainer = { questionsPerStep: 6, steps, saveEvery: 3, referenceEvery: 1, referenceDecay: 0.9 };
      const more = { trainer, optimizer, distributed: { shardReference }, rollout: { groupSize: 4, maxNewTokens: 24 } };
      return { ...onGpus(name, more), deterministic: true }; // or the policies would part in the last bits
    };
    const [whole, cut] = [of("moving-whole", false, 6), of("moving-cut", true, 6)];
    await run(2, "grpo", whole);
    await run(2, "grpo", { ...cut, trainer: { ...cut.trainer, steps: 3 } });
    await run(2, "grpo", cut, true);
    expect(column(cut, "loss/kl")).toEqual(column(whole, "loss/kl"));
    expect(Math.max(...column(cut, "loss/kl"))).toBeGreaterThan(0);
  },
);
