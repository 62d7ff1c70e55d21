/** What a run with lora leaves in `best`, and the model that `export` makes of it. */

import { existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { main } from "../../src/cli/main.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import type { TrainHooks } from "../../src/trainer/training-loop.ts";
import { captureOutput } from "../cli/capture.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));
const { out, err } = captureOutput();

const trainer = { steps: 1, saveEvery: 1, keepBest: 1, bestMetric: "loss/sft" };
/** The run folder of a step of SFT over a model. */
async function run(
  name: string,
  model: object,
  more: { [section: string]: object } = {},
  hooks: TrainHooks = {},
): Promise<string> {
  const config = tinyConfig(world, name, { model, trainer, optimizer: { learningRate: 1e-2 }, ...more });
  await trainSft(config, hooks);
  return config.runDir;
}
const lora = { lora: { rank: 2 } };
const bytes = (folder: string) => readFileSync(path.join(folder, "model.safetensors"));
const exported = (name: string, ...flags: string[]) =>
  main(["export", "--out", path.join(world.folder, name), "--dtype", "float32", ...flags]);

test("the best adapter, merged: the model that its run wrote at the end", async () => {
  const base = path.join(await run("whole", { path: world.model, init: "random" }), "best", "model");
  const folder = await run("lora", { path: base, init: "pretrained" }, lora);
  const best = path.join(folder, "best");
  expect(await exported("merged", "--set", `model.path=${best}`)).toBe(1);
  expect(err.text).toContain(`with an adapter in it; set ${best}/adapter`);

  const from = ["--set", `model.path=${best}/adapter`];
  expect(await exported("merged", ...from)).toBe(0);
  expect(out.text).toContain(`${base} with ${best}/adapter merged into it, float32`);
  const merged = path.join(world.folder, "merged");
  expect(bytes(merged).equals(bytes(path.join(folder, "final")))).toBe(true);
  expect(bytes(merged).equals(bytes(base))).toBe(false);
  for (const file of ["config.json", "tokenizer.json", "preprocessor_config.json"])
    expect(existsSync(path.join(merged, file)), file).toBe(true);

  const twice = (model: string) => exported("twice", "--set", `model={path: "${model}", adapter: "${best}/adapter"}`);
  for (const model of [merged, path.join(folder, "final")]) {
    expect(await twice(model)).toBe(1);
    expect(err.text).toContain(`model.adapter: the weights of ${model} have ${best}/adapter in them already`);
  }

  expect(await exported("merged", ...from)).toBe(1);
  expect(err.text).toContain("the folder is not empty");
  expect(await exported("merged/config.json", ...from)).toBe(1);
  expect(err.text).toContain("config.json: is a file");
});

test("an adapter over another one names no model: the one that model.path alone would be is not its own", async () => {
  const base = path.join(await run("whole 2", { path: world.model, init: "random" }), "final");
  const first = path.join(await run("first", { path: base, init: "pretrained" }, lora), "best", "adapter");
  const folder = await run("second", { path: base, init: "pretrained", adapter: first }, lora);
  for (const place of ["best", "final"])
    expect(await exported("none", "--set", `model.path=${path.join(folder, place, "adapter")}`)).toBe(1);
  expect(err.text.match(/adapter_config\.json names no model/g)).toHaveLength(2);

  expect(await exported("base 2", "--set", `model.path=${first}`)).toBe(0);
  const own = `model={path: "${path.join(world.folder, "base 2")}", adapter: "${folder}/best/adapter"}`;
  expect(await exported("both", "--set", own)).toBe(0);
  expect(bytes(path.join(world.folder, "both")).equals(bytes(path.join(folder, "final")))).toBe(true);

  // a policy that was trained on over merged adapters has them in it, too, in its checkpoints as at the end
  const further = await run("further", { path: path.join(folder, "final"), init: "pretrained" });
  const over = { path: base, init: "pretrained", adapter: first };
  await run("over", over);
  const moved = `${first} elsewhere`;
  renameSync(first, moved); // a run that goes on needs it no more
  const resumed = await run("over", over, { trainer: { ...trainer, steps: 2 } }, { resume: true });
  renameSync(moved, first);
  expect(await exported("twice more", "--set", `model={path: "${resumed}/final", adapter: "${first}"}`)).toBe(1);
  expect(err.text).toContain(`the weights of ${resumed}/final have ${first} in them already`);
  for (const model of [path.join(further, "best", "model"), path.join(further, "final")]) {
    expect(await exported("thrice", "--set", `model={path: "${model}", adapter: "${first}"}`)).toBe(1);
    expect(err.text).toContain(`the weights of ${model} have ${first} in them already`);
  }
});
