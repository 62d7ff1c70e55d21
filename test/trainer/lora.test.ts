/** Runs that train an adapter: what is trained and what stays, the reference, checkpoints, the exported folders. */

import { cpSync, existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { CheckpointError } from "../../src/errors.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";
import { openModel } from "../../src/trainer/assemble.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const metricsOf = ({ runDir }: { runDir: string }) => readMetrics(path.join(runDir, "metrics.jsonl"));
const trainer = { questionsPerStep: 3, steps: 4, saveEvery: 2, keepLast: 9 };
const loraConfig = (name: string, lora: object = {}, more: { [section: string]: object } = {}) => {
  const rest = { ...more, trainer: { ...trainer, ...more.trainer } };
  return tinyConfig(world, name, { ...rest, lora: { rank: 2, alpha: 4, ...lora } });
};

function tensorsOf(file: string): Map<string, number[]> {
  using stored = new SafetensorsFile(file);
  return new Map(stored.names().map((name) => [name, scope(() => stored.tensor(name).toNumbers())]));
}
const adapterOf = (folder: string) => tensorsOf(path.join(folder, "adapter_model.safetensors"));
const bytesOf = (file: string) => readFileSync(file);

function weightsOf(config: Config): Map<string, number[]> {
  using model = openModel(config);
  return new Map(model.parameters.flatMap(({ name, tensor }) => [[name, tensor.toNumbers()] as const]));
}

const BOTH = { parts: ["language", "vision"] };

test.each([
  ["language model", {}],
  ["both parts with dropout", { ...BOTH, dropout: 0.3 }],
])("GRPO of an adapter of the %s: sampler and trainer agree, the reference is the base, a resumed run is the same bits", async (name, lora) => {
  const straight = loraConfig(`straight ${name}`, lora);
  expect(await trainGrpo(straight)).toMatchObject({ step: 4, finished: true });
  const lines = metricsOf(straight);
  const live = lines.map((line) => line["memory/live_tensors"]);
  expect(new Set(live.slice(0, 1)).size).toBe(1);
  const dropout = "dropout" in lora;
  for (const line of lines) {
    expect(line["memory/live_tensors"]).toBe(lines[0]?.["memory/live_tensors"]);
    if (!dropout) expect(line["rollout/logprob_gap_max"]).toBeLessThan(1e-4);
  }
  // a new adapter adds nothing: policy and reference are one until the first update
  if (!dropout) expect(lines[0]?.["loss/kl"]).toBeLessThan(1e-9);
  expect(lines.at(-1)?.["loss/kl"]).toBeGreaterThan(1e-9);

  const checkpoint = path.join(straight.runDir, "checkpoint-4");
  expect(readdirSync(checkpoint).sort()).toEqual(["adapter", "manifest.json", "optimizer.safetensors", "state.json"]);
  const moments = [...tensorsOf(path.join(checkpoint, "optimizer.safetensors")).keys()];
  expect(moments.every((key) => /\.lora_[AB]\.weight\.[mv]$/.test(key))).toBe(true);
  const towers = [...adapterOf(path.join(checkpoint, "adapter")).keys()].filter((key) => key.includes("visual"));
  expect(towers.length > 0).toBe("parts" in lora);

  const resumed = loraConfig(`resumed ${name}`, lora);
  cpSync(straight.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-4", "final"]) rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(lines.map(deterministic));
  for (const file of [
    "final/model.safetensors",
    "final/adapter/adapter_model.safetensors",
    "final/adapter/adapter_config.json",
    "checkpoint-4/optimizer.safetensors",
  ])
    expect(bytesOf(path.join(resumed.runDir, file)).equals(bytesOf(path.join(straight.runDir, file)))).toBe(true);
});

test("the exported model is the base with the adapter added; model.adapter reads the same; lora.path goes on from it", async () => {
  const config = loraConfig("exported", BOTH);
  const { finalDir } = await trainGrpo(config);
  const final = finalDir as string;
  expect(existsSync(path.join(final, "adapter_config.json"))).toBe(false); // transformers would add it once more
  const base = weightsOf(tinyConfig(world, "base"));
  const merged = weightsOf(tinyConfig(world, "merged", { model: { path: final, init: "pretrained" } }));
  const adapter = path.join(final, "adapter");
  const read = weightsOf(tinyConfig(world, "read", { model: { path: world.model, init: "random", adapter } }));
  for (const [name, values] of read) expect(values, name).toEqual(merged.get(name));
  const changed = [...base.keys()].filter((key) => base.get(key)?.join() !== merged.get(key)?.join());
  expect(changed.length).toBeGreaterThan(0);
  for (const key of changed) expect(key).toMatch(/(qkv_proj|o_proj|gate_up_proj|down_proj|qkv|proj|fc1|fc2)\.weight$/);
  expect(changed).not.toContain("visual.patch_embed.proj.weight");

  const further = loraConfig("further", { ...BOTH, path: adapter }, { trainer: { steps: 1 } });
  await trainGrpo(further);
  const [first, then] = [adapterOf(adapter), adapterOf(path.join(further.runDir, "final", "adapter"))];
  expect([...then.keys()]).toEqual([...first.keys()]);
  expect(metricsOf(further)[0]?.["loss/kl"]).toBeGreaterThan(1e-9); // the reference is the base, and this is not it any more
  const other = loraConfig("other rank", { ...BOTH, rank: 3, path: adapter });
  await expect(trainGrpo(other)).rejects.toThrow(/is an adapter of rank 2, alpha 4, targets .*; expected rank 3/);
});

test("a checkpoint of an adapter is refused by a run without lora, and with another base", async () => {
  const config = loraConfig("kept", {}, { trainer: { steps: 2 } });
  await trainGrpo(config);
  const more = { trainer: { ...trainer, steps: 3 } };
  const whole = tinyConfig(world, "kept", more);
  await expect(trainGrpo(whole, { resume: true })).rejects.toThrow(/holds an adapter and no model/);
  const moved = { ...loraConfig("kept", {}, { trainer: { steps: 3 } }), seed: 8 };
  await expect(trainGrpo(moved, { resume: true })).rejects.toThrow(CheckpointError);
  await expect(trainGrpo(moved, { resume: true })).rejects.toThrow(/other weights than those this run started from/);
});

test("SFT of an adapter with dropout lowers the loss, and gives the same numbers again", async () => {
  const run = async (name: string, seed: number) => {
    const config = {
      ...loraConfig(name, { dropout: 0.2 }, { trainer: { steps: 8 }, optimizer: { learningRate: 2e-2 } }),
      seed,
    };
    await trainSft(config);
    return metricsOf(config).map(deterministic);
  };
  const lines = await run("sft", 7);
  expect(lines.at(-1)?.["loss/sft"]).toBeLessThan(0.98 * (lines[0]?.["loss/sft"] as number));
  expect(await run("sft again", 7)).toEqual(lines);
});

test("packs of other sizes and the plain path drop the same inputs", async () => {
  const run = async (name: string, knobs: object) => {
    const config = loraConfig(name, { ...BOTH, dropout: 0.3 }, { trainer: { steps: 2, ...knobs } });
    await trainGrpo(config);
    return metricsOf(config)[1] as Record<string, number>; // the first update's adapter adds nothing, whatever is dropped
  };
  const one = await run("large packs", { tokensPerPack: 4000 });
  for (const [name, knobs] of [
    ["small packs", { tokensPerPack: 1 }],
    ["plain path", { sharedPrefix: false }],
  ] as const) {
    const other = await run(name, knobs);
    for (const key of ["loss/kl", "loss/entropy", "grad/norm"])
      expect(Math.abs((other[key] as number) / (one[key] as number) - 1)).toBeLessThan(1e-3);
  }
});

test("what cannot go together is refused with the reason", () => {
  const problems = (more: object) => {
    const found = configSchema.safeParse({ model: { path: "unused" }, ...more });
    return found.success ? [] : found.error.issues.map(({ path: at, message }) => `${at.join(".")}: ${message}`);
  };
  expect(problems({ lora: { rank: 0 } }).join()).toMatch(/lora\.rank/);
  expect(problems({ lora: { targets: ["lm_head"] } }).join()).toMatch(/lora\.targets/);
  expect(problems({ lora: {} })).toEqual([]);
});
