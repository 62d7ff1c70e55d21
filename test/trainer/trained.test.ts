/** Freezing by part and learning rates by part: what moves, what stays, and that the rest is as it was. */

import { cpSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { checkConfig } from "../../src/config/check.ts";
import { PIECES } from "../../src/config/lora.ts";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { packGroups } from "../../src/model/packed.ts";
import { parameterSpecs } from "../../src/model/qwen2vl/parameters.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { ones } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { openModel } from "../../src/trainer/assemble.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { pieceOf, takeTrained } from "../../src/trainer/trained.ts";
import { randomGroup, shakenModel, tinyConfig as tinyModel } from "../model/support.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const parsed = (more: object) => configSchema.parse({ model: { path: "unused" }, ...more });
const problems = (more: object) => checkConfig(parsed(more)).map(({ knob, problem }) => `${knob}: ${problem}`);

test("every parameter belongs to one piece, and each piece has some", () => {
  const names = parameterSpecs(tinyModel()).map(({ name }) => name);
  expect(new Set(names.map(pieceOf))).toEqual(new Set(PIECES));
  expect(names.filter((name) => pieceOf(name) === "language.head")).toEqual(["model.norm.weight", "lm_head.weight"]);
  expect(pieceOf("model.layers.1.self_attn.qkv_proj.lora_A.weight")).toBe("language.layers");
});

test.each([
  false,
  true,
])("frozen parts have no gradient, the others have the same bits as without (tied head: %s)", (tied) => {
  const config = tinyModel(tied);
  const group = randomGroup(config, 1, { images: [[1, 4, 2]], videos: [[2, 4, 4]], completions: [5, 3] });
  const gradients = (freeze: string[]) => {
    using model = shakenModel(config, 3, "float32");
    const trained = takeTrained(model, parsed({ trainer: { freeze } }));
    return scope(() => {
      using pass = model.pass(packGroups([group]), { grad: true });
      pass.backward(ones([8]));
      for (const { name, tensor } of model.parameters)
        expect(tensor.grad === null, name).toBe(!trained.some((one) => one.name === name));
      return new Map(trained.map(({ name, tensor }) => [name, tensor.grad?.toNumbers()]));
    });
  };
  const all = gradients([]);
  for (const freeze of [
    ...PIECES.map((piece) => [piece]),
    ["vision"],
    ["vision.patchEmbed", "vision.blocks", "language"],
  ]) {
    const some = gradients(freeze);
    const left = [...all.keys()].filter((name) => !freeze.some((one) => pieceOf(name).startsWith(one)));
    expect([...some.keys()]).toEqual(left);
    for (const [name, values] of some) expect(values, `${name}, ${freeze} frozen`).toEqual(all.get(name));
  }
});

function finalOf({ runDir }: Config): Map<string, number[]> {
  using file = new SafetensorsFile(path.join(runDir, "final/model.safetensors"));
  return new Map(file.names().map((name) => [name, scope(() => file.tensor(name).toNumbers())]));
}

const run = async (name: string, more: { [section: string]: object }, resume = false) => {
  const config = tinyConfig(world, name, {
    ...more,
    trainer: { steps: 4, saveEvery: 2, keepLast: 9, questionsPerStep: 2, ...more.trainer },
  });
  await trainSft(config, { resume });
  return config;
};

test("a run moves what is not frozen, each part by its own rate, and resumes exactly", async () => {
  const rates = { learningRate: 1e-3, partRates: { vision: 1e-4, "vision.merger": 5e-3, "language.head": 2e-3 } };
  const knobs = { trainer: { freeze: ["language.embedding", "vision.patchEmbed"] }, optimizer: rates };
  const config = await run("parts", knobs);
  using start = openModel(config);
  const before = new Map(
    start.parameters.flatMap(({ parts, tensor }) => parts.map(({ name }) => [name, tensor.toNumbers()])),
  );
  const after = finalOf(config);
  for (const name of ["model.embed_tokens.weight", "visual.patch_embed.proj.weight"])
    expect(after.get(name)).toEqual(before.get(name));
  expect(after.get("visual.merger.mlp.0.weight")).not.toEqual(before.get("visual.merger.mlp.0.weight"));
  const line = readMetrics(path.join(config.runDir, "metrics.jsonl"))[1] as Record<string, number>;
  expect(
    (line["optimizer/learning_rate/vision.merger"] as number) / (line["optimizer/learning_rate"] as number),
  ).toBeCloseTo(5, 12);

  const again = tinyConfig(world, "parts again");
  cpSync(config.runDir, again.runDir, { recursive: true });
  for (const later of ["checkpoint-4", "final"]) rmSync(path.join(again.runDir, later), { recursive: true });
  const resumed = await run("parts again", knobs, true);
  expect(finalOf(resumed)).toEqual(after);
  const lines = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl")).map(deterministic);
  expect(lines(resumed)).toEqual(lines(config));
});

test.each([
  "float32",
  "bfloat16",
  "int8",
])("AdamW's first step is the part's rate, with moments of %s", async (moments) => {
  const partRates = { vision: 1e-5, "vision.merger": 4e-4, "language.layers": 2e-4 };
  const common = { moments, maxGradNorm: 1e9, schedule: "constant", learningRate: 1e-3 };
  const trainer = { steps: 1 };
  const config = await run(`rates ${moments}`, { trainer, optimizer: { ...common, partRates } });
  const plain = await run(`plain ${moments}`, { trainer, optimizer: common });
  const same = await run(`same ${moments}`, { trainer, optimizer: { ...common, partRates: { vision: 1e-3 } } });
  expect(finalOf(same)).toEqual(finalOf(plain)); // cut where nothing changes
  using start = openModel(config);
  const [after, at1e3] = [finalOf(config), finalOf(plain)];
  const expected = { "vision.patchEmbed": 0.01, "vision.blocks": 0.01, "vision.merger": 0.4, "language.layers": 0.2 };
  for (const { name, parts, tensor } of start.parameters) {
    const ratio = expected[pieceOf(name) as keyof typeof expected] ?? 1;
    const values = tensor.toNumbers();
    for (const { name: stored, rows } of parts) {
      const width = values.length / tensor.size(0);
      const from = values.slice(rows[0] * width, rows[1] * width);
      const moved = (to: number[]) => Math.sqrt(from.reduce((sum, x, i) => sum + ((to[i] as number) - x) ** 2, 0));
      const [own, whole] = [moved(after.get(stored) as number[]), moved(at1e3.get(stored) as number[])];
      if (whole > 1e-4) expect(Math.abs(own / whole / ratio - 1), stored).toBeLessThan(0.02);
    }
  }
});

test("what has no meaning is refused with the reason", () => {
  expect(problems({ trainer: { freeze: ["vision", "language"] } }).join()).toMatch(/every part is frozen/);
  expect(problems({ trainer: { freeze: ["vision"] }, optimizer: { partRates: { "vision.merger": 1 } } })).toEqual([
    "optimizer.partRates.vision.merger: this part is frozen",
  ]);
  expect(problems({ optimizer: { partRates: { lora: 1 } } }).join()).toMatch(/there is no adapter to train/);
  expect(problems({ lora: {}, optimizer: { partRates: { lora: 1 } } })).toEqual([]);
  expect(problems({ lora: {}, optimizer: { partRates: { vision: 1 } } }).join()).toMatch(/all weights .* are frozen/);
  expect(problems({ lora: {}, trainer: { freeze: ["vision"] } }).join()).toMatch(/nothing left to freeze/);
  expect(problems({ lora: {}, distributed: { shardReference: true } }).join()).toMatch(/model without its adapter/);
  expect(problems({ lora: {}, trainer: { referenceEvery: 2 } }).join()).toMatch(/does not move/);
  expect(problems({ lora: {}, model: { path: "a", recompute: "selective" } }).join()).toMatch(/as a whole/);
  expect(problems({ lora: { targets: ["qkv"] } }).join()).toMatch(/qkv belong to vision/);
  expect(problems({ lora: { parts: ["vision"] }, model: { path: "a", freezeVision: true } }).join()).toMatch(
    /names vision/,
  );
});
