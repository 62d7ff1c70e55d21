import { readFileSync, rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { checkData } from "../../src/data/check-data.ts";
import { spread } from "../../src/data/check-set.ts";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import { parseConfig } from "../../src/model/qwen2vl/config.ts";
import type { Recompute } from "../../src/model/tape.ts";
import { DecodeBuffers, sizesOf } from "../../src/rollout/decode-buffers.ts";
import { slotBytes } from "../../src/rollout/slot-shape.ts";
import { liveTensors } from "../../src/torch/scope.ts";
import { activationBytes, CHUNK_BYTES, KEEP_BYTES, updateWorkspace } from "../../src/trainer/activations.ts";
import { openModel, readTrainingData } from "../../src/trainer/assemble.ts";
import { AdamW } from "../../src/trainer/optimizer.ts";
import {
  largestPack,
  memoryParts,
  parameterCount,
  peakBytes,
  type Stage,
  visionEstimate,
} from "../../src/trainer/plan.ts";
import { makePlan } from "../../src/trainer/plan-text.ts";
import { openPolicy } from "../../src/trainer/policy.ts";
import { recomputeChoices } from "../../src/trainer/recompute-plan.ts";
import { responseIds } from "../../src/trainer/sft.ts";
import { stateBytes } from "../../src/trainer/sharded-memory.ts";
import { takeTrained } from "../../src/trainer/trained.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

/** Qwen2-VL-7B-Instruct's config.json, what decides sizes. */
const seven = parseConfig({
  model_type: "qwen2_vl",
  hidden_size: 3584,
  intermediate_size: 18944,
  num_hidden_layers: 28,
  num_attention_heads: 28,
  num_key_value_heads: 4,
  vocab_size: 152064,
  rms_norm_eps: 1e-6,
  rope_scaling: { type: "mrope", mrope_section: [16, 24, 24] },
  vision_config: { depth: 32, embed_dim: 1280, num_heads: 16, hidden_size: 3584 },
});
const config = (more: object = {}): Config =>
  configSchema.parse({ model: { path: "unused" }, device: "cuda", ...more });
const seed = { prompt: 849, vision: 729, completion: 256 };
const planLines = async (stage: Stage, some: Config, bytes: number | null = null) =>
  (await makePlan(stage, some, { ranks: 1, from: "a test", bytes, of: "a test" })).lines;
const partsOf = (stage: Stage, some = config()) =>
  Object.fromEntries(memoryParts(stage, some, seven, seed).map(({ name, bytes }) => [name, bytes]));

test("7B: weights, reference, gradients and optimizer state to the byte", () => {
  expect(parameterCount(seven)).toBe(8_291_375_616);
  const weights = 8_291_375_616 * 2;
  expect(partsOf("grpo")).toMatchObject({
    weights,
    reference: weights,
    gradients: weights,
    optimizer: 8_291_375_616 * 10,
  });
  expect(partsOf("grpo", config({ trainer: { klCoef: 0 } })).reference).toBeUndefined();
  expect(partsOf("sft").reference).toBeUndefined();
  expect(partsOf("grpo", config({ dtype: "float32" }))).toMatchObject({
    weights: 2 * weights,
    optimizer: 8_291_375_616 * 8,
  });
  expect(Object.keys(partsOf("eval"))).toEqual(["weights", "KV cache and drawing", "prefill workspace"]);
  const frozen = partsOf("sft", config({ model: { path: "unused", freezeVision: true } }));
  expect(weights - (frozen.gradients as number)).toBe(675_759_104 * 2); // the vision tower's
});

test("7B: the cache holds 8 prompts once, 64 completions, and rows of the vocabulary to draw from", () => {
  const vocabulary = 152_064;
  const tokens = 8 * (849 + 8 * 256);
  const drawing = 8 * vocabulary * 2 + 64 * vocabulary * 6;
  expect(partsOf("grpo")["KV cache and drawing"]).toBe(tokens * 57_344 + drawing);
  // in float32, by waves: 849 tokens take 856 slots, the next multiple of 8
  const padded = 8 * (856 + 8 * 256);
  const wide = partsOf("grpo", config({ dtype: "float32" }))["KV cache and drawing"];
  expect(wide).toBe(padded * 57_344 * 2 + 64 * vocabulary * 4 * 6);
  const more = config({ trainer: { questionsPerStep: 800 }, rollout: { maxConcurrent: 64 } });
  expect(partsOf("grpo", more)["KV cache and drawing"]).toBe(tokens * 57_344 + drawing);
  // steps of 256 rows whatever is sampled
  const fixed = partsOf("grpo", config({ rollout: { deterministic: true } }))["KV cache and drawing"];
  expect(fixed).toBe(tokens * 57_344 + 8 * vocabulary * 2 + 256 * vocabulary * 6);
});

test("packs: as many groups as the budget holds, at least one, at most the batch", () => {
  const group = 849 + 8 * 256;
  const pack = (trainer: object, stage: Stage = "grpo") => largestPack(stage, config({ trainer }), seven, seed);
  expect(pack({})).toEqual({ tokens: 2 * group, completionTokens: 2 * 8 * 256, patches: 2 * 729 * 4 });
  expect(pack({ tokensPerPack: 10 }).tokens).toBe(group);
  expect(pack({ tokensPerPack: 10 ** 6 }).tokens).toBe(8 * group);
  expect(pack({ sharedPrefix: false })).toEqual({ tokens: 7 * 1105, completionTokens: 7 * 256, patches: 7 * 729 * 4 });
  expect(pack({}, "sft").tokens).toBe(7 * 1105);
});

test("activations: what a layer keeps per token, times layers, and what is made again at one of them", () => {
  // One text token, no pictures, no completion: X 3584, (28 + 2 x 4) heads of 128, I 18944, and 28 log-sum-exps.
  const perLayer = 4 * 3584 + 36 * 128 + 32 * 128 + 28 * 128 + 2 * 18944;
  const token = { tokens: 1, completionTokens: 0, patches: 0 };
  const kept = (recompute: Recompute, freezeVision = false, pack = token, more: object = {}) =>
    activationBytes(pack, config({ model: { path: "unused", freezeVision }, ...more }), seven, {
      text: recompute,
      vision: recompute,
    });
  expect(kept("none")).toBe(28 * (2 * perLayer + 28 * 4));
  expect(kept("norms")).toBe(28 * (2 * (2 * 3584 + 36 * 128 + 28 * 128 + 2 * 18944) + 28 * 4) + 2 * 3584);
  expect(kept("mlp")).toBe(28 * (2 * (2 * 3584 + 36 * 128 + 28 * 128) + 28 * 4) + 2 * (3584 + 2 * 18944));
  expect(kept("layer")).toBe(2 * (28 * 3584 + perLayer));
  // One merged patch of four: 18 E a block where quick GELU is a kernel, 22 E elsewhere; 16 log-sum-exps; pixels, and one feature.
  const patches = { tokens: 0, completionTokens: 0, patches: 4 };
  const rest = 4 * 1176 + 3584;
  expect(kept("none", false, patches)).toBe(4 * 32 * (2 * 18 * 1280 + 16 * 4) + 2 * rest);
  expect(kept("none", false, patches, { dtype: "float32" })).toBe(4 * 32 * (4 * 22 * 1280 + 16 * 4) + 4 * rest);
  expect(kept("mlp", false, patches)).toBe(4 * 32 * (2 * 6 * 1280 + 16 * 4) + 2 * (4 * 13 * 1280 + rest));
  expect(kept("layer", false, patches)).toBe(2 * (4 * (32 + 18) * 1280 + rest));
  expect(kept("none", true, patches)).toBe(2 * rest);
  // The head: three rows of hidden states; logits only while they are few.
  const answers = (completionTokens: number) => kept("layer", false, { ...token, tokens: 0, completionTokens });
  expect(answers(1)).toBe(3 * 3584 * 2 + 152_064 * 2);
  expect(answers(7000)).toBe(7000 * (3 * 3584 + 152_064) * 2);
  expect(answers(8000)).toBe(8000 * 3 * 3584 * 2);
});

test("workspace: the largest of head chunk, one layer's gradients, the embedding's gradient", () => {
  const work = (tokens: number, completionTokens: number, more: object = {}) =>
    updateWorkspace({ tokens, completionTokens, patches: 0 }, config({ dtype: "bfloat16", ...more }), seven);
  const rows = (bytes: number) => Math.floor(CHUNK_BYTES / (152_064 * bytes));
  // On a GPU in bfloat16 gradients go where they belong, and logits that are kept become their gradient.
  expect(work(1, 10 ** 6, { device: "cuda" })).toBe(rows(2) * 152_064 * 2);
  expect(work(1, 7000, { device: "cuda" })).toBe(2 * (5 * 18944 + 3 * 3584));
  expect(work(100_000, 1, { device: "cuda" })).toBe(2 * 100_000 * (5 * 18944 + 3 * 3584));
  const cpu = { device: "cpu" };
  expect(work(1, 1, cpu)).toBe(152_064 * 3584 * 2); // the embedding's
  expect(work(1, 10 ** 6, cpu)).toBe(rows(2) * 152_064 * 16);
  expect(work(1, 10 ** 6, { ...cpu, dtype: "float32" })).toBe(rows(4) * 152_064 * 12);
  expect(work(100_000, 1, cpu)).toBe(2 * (100_000 * (5 * 18944 + 3 * 3584) + 2 * 18944 * 3584));
});

test("the largest moment is the rollout or the update, on top of what is always there", () => {
  const parts = [
    { name: "a", bytes: 100, during: "always" },
    { name: "b", bytes: 7, during: "rollout" },
    { name: "c", bytes: 5, during: "update" },
    { name: "d", bytes: 4, during: "update" },
  ] as const;
  expect(peakBytes(parts)).toBe(109);
  expect(peakBytes(parts.slice(0, 3))).toBe(107);
});

test("limits that are written twice agree with the code they describe", () => {
  const source = (file: string) => readFileSync(new URL(`../../src/${file}`, import.meta.url), "utf8");
  const head = source("model/lm-head.ts");
  const power = (name: string) => 2 ** Number(new RegExp(`${name} = 2 \\*\\* (\\d+)`).exec(head)?.[1]);
  expect(power("CHUNK_BYTES")).toBe(CHUNK_BYTES);
  expect(power("KEEP_BYTES")).toBe(KEEP_BYTES);
});

test.each([
  [{ videos: 1, images: 1 }, 729],
  [{ videos: 1, images: 0 }, 648],
  [{ videos: 0, images: 1 }, 81],
  [{ videos: 0, images: 0 }, 0],
])("the seed's pictures, %j: %i tokens", (media, tokens) => {
  const sizes = { maxFrames: 16, resizedHeight: 256, resizedWidth: 256 };
  expect(visionEstimate(sizes, media, seven.vision)).toBe(tokens);
  expect(visionEstimate({ maxFrames: 16 }, media, seven.vision)).toBe(tokens === 0 ? 0 : null);
});

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

test.each([
  ["float32", false],
  ["bfloat16", false],
  ["bfloat16", true],
] as const)("a real model in %s (vision frozen: %s) takes the bytes that the plan says", (dtype, freezeVision) => {
  const some = {
    ...tinyConfig(world, `plan ${dtype}`, { model: { path: world.model, init: "random", freezeVision } }),
    dtype,
  };
  using model = openModel(some);
  const shape = model.config;
  const weights = model.parameters.reduce((sum, { tensor }) => sum + tensor.numel, 0);
  expect(parameterCount(shape)).toBe(weights);
  const { gradients, optimizer } = stateBytes(some, shape, 1);
  const size = { prompt: 10, vision: 4, completion: 3 };
  expect(memoryParts("sft", some, shape, size)[0]).toMatchObject({
    name: "weights",
    bytes: weights * (dtype === "float32" ? 4 : 2),
  });

  const trained = model.parameters.filter(({ name }) => !(freezeVision && name.startsWith("visual.")));
  const withModel = liveTensors().bytes;
  {
    using _state = new AdamW(trained, some.optimizer);
    expect(liveTensors().bytes - withModel).toBe(gradients + optimizer);
  }
  {
    const slots = { rows: 12, slots: 12, ownSlots: 3, group: 4, seats: 3, arenaTokens: 30 };
    using buffers = new DecodeBuffers(slots, model);
    const kv = [...buffers.promptK, ...buffers.promptV, ...buffers.ownK, ...buffers.ownV];
    expect(buffers.kvBytes).toBe(kv.reduce((sum, tensor) => sum + tensor.nbytes, 0));
    const asked = { ...some, trainer: { ...some.trainer, questionsPerStep: 3 } };
    const part = memoryParts("grpo", asked, shape, size).find(({ name }) => name === "KV cache and drawing");
    expect(part?.bytes).toBe(slotBytes(slots, sizesOf(model)));
  }
  expect(liveTensors().bytes).toBe(withModel);
});

test.each([
  {},
  { parts: ["language", "vision"] },
])("an adapter (%j) takes the bytes that the plan says, and its reference none", (lora) => {
  const model = { path: world.model, init: "random" };
  const some = tinyConfig(world, "plan lora", { model, lora: { rank: 3, ...lora } });
  using policy = openPolicy(some, undefined);
  const state = stateBytes(some, policy.config, 1);
  const all = [...policy.parameters, ...(policy.adapter?.parameters ?? [])];
  expect(state.weights).toBe(all.reduce((sum, { tensor }) => sum + tensor.nbytes, 0));
  expect(state.reference).toBe(0);
  const before = liveTensors().bytes;
  using _reference = policy.withoutAdapter();
  using _optimizer = new AdamW(takeTrained(policy, some), some.optimizer);
  const tables = 2 * 1024; // of the reference's rotations
  expect(Math.abs(liveTensors().bytes - before - state.gradients - state.optimizer)).toBeLessThan(tables);
});

test("what an adapter's layers keep: what is between its factors, its inputs and their masks with dropout, and no levels between none and whole layers", () => {
  const lora = (more: object) => config({ model: { path: "unused" }, lora: more });
  const pack = { tokens: 100, completionTokens: 10, patches: 0 };
  const bytes = (some: Config, text: Recompute) => activationBytes(pack, some, seven, { text, vision: "none" });
  const plain = config({ model: { path: "unused" } });
  const { numLayers, hiddenSize } = seven.text;
  const item = plain.dtype === "bfloat16" ? 2 : 4;
  const extra = bytes(lora({ rank: 8, targets: ["q_proj", "v_proj"] }), "none") - bytes(plain, "none");
  expect(extra).toBe(100 * numLayers * 2 * 8 * item);
  const down = bytes(lora({ rank: 8, targets: ["down_proj"] }), "none") - bytes(plain, "none");
  expect(down).toBe(100 * numLayers * 8 * item); // of SwiGLU's product nothing
  const drops =
    bytes(lora({ targets: ["o_proj"], dropout: 0.1 }), "none") - bytes(lora({ targets: ["o_proj"] }), "none");
  expect(drops).toBe(100 * (numLayers * 2 + 8) * hiddenSize * item);
  expect(recomputeChoices(pack, lora({}), seven).map(({ plan }) => plan.text)).toEqual(["none", "layer"]);
  const visionOnly = recomputeChoices(pack, lora({ parts: ["vision"] }), seven).map(({ plan }) => plan.text);
  expect(visionOnly).toEqual(["none", "norms", "mlp", "layer"]);
});

test("the plan of a run that can be made: data, steps, measured prompts, memory", async () => {
  const some = tinyConfig(world, "lines", {
    trainer: { questionsPerStep: 3, steps: undefined, epochs: 2, evalEvery: 5, evalLimit: 7 },
    compat: { hiddenTopK: true },
  });
  const lines = await planLines("grpo", some);
  expect(lines.slice(0, 5)).toEqual([
    "plan of grpo",
    "data",
    `  train 1: 24 records (${world.questions})`,
    `  eval easy: 24 records (${world.questions})`,
    expect.stringMatching(/^model: .*: [\d,]+ parameters in float32, drawn at random$/),
  ]);
  expect(lines).toContain("steps: 16 of 3 records = 2 epochs, an evaluation of 7 questions a set every 5 steps");
  expect(lines.find((line) => line.startsWith("prompt: "))).toMatch(
    /^prompt: \d+ tokens, 4 of them of pictures \(mean of 8 questions\)$/,
  );
  expect(lines).toContain("completions a step: 3 questions x 4 = 12, temperature 1, among the 50 likeliest tokens");
  expect(lines).toContain("as the seed does: compat.hiddenTopK");
  expect(lines.at(-2)).toMatch(/^ {2}at most: [\d.]+$/);
  expect(lines.at(-1)).toMatch(
    /^needs a GPU of [\d.]+ \+- [\d.]+ GiB.*; --device-memory says whether another one fits$/,
  );
});

test("what is missing is said, and the rest is planned all the same", async () => {
  const some = tinyConfig(world, "missing", {
    data: {
      train: [{ file: "/no/such.jsonl", format: "seed-bench-r1" }],
      eval: {},
      resizedHeight: 256,
      resizedWidth: 256,
    },
    model: { path: "/no/such/model" },
    trainer: { questionsPerStep: 8, steps: undefined },
  });
  const lines = await planLines("grpo", some);
  expect(lines).toContain("  train 1: not found (/no/such.jsonl)");
  expect(lines).toContain("model: not found: /no/such/model; no memory estimate");
  const named = {
    ...some,
    model: { ...some.model, path: "/no/such/Qwen2-VL-7B-Instruct" },
    dtype: "bfloat16" as const,
  };
  const released = await planLines("grpo", named);
  expect(released.find((line) => line.startsWith("model: "))).toMatch(/released Qwen2-VL-7B, 8,291,375,616 parameters/);
  expect(released).toContain("  weights: 15.44");
  expect(lines).toContain("steps: 1 epoch of 8 records a step; how many is known once all training data is there");
  expect(lines.find((line) => line.startsWith("prompt: "))).toMatch(
    /^prompt: 849 tokens, 729 of them of pictures \(estimated, not measured/,
  );
  const free = { ...some, data: { ...some.data, resizedHeight: undefined, resizedWidth: undefined } };
  expect((await planLines("grpo", free)).find((line) => line.startsWith("tokens: "))).toMatch(
    /^tokens: unknown: without data\.resizedHeight/,
  );
});

test("what is computed again is said: on this device, or on which device what; by part of the model", async () => {
  const released = (more: object, device = "cuda") => ({
    ...tinyConfig(world, "again", {
      model: { path: "/no/such/Qwen2-VL-7B-Instruct", ...more },
      data: { train: [], eval: {}, resizedHeight: 252, resizedWidth: 252 },
    }),
    device,
    dtype: "bfloat16" as const,
  });
  const GIB = 2 ** 30;
  const told = async (some: Config, bytes: number | null = null) =>
    (await planLines("grpo", some, bytes)).filter((line) => /GiB on$|computed again in/.test(line));
  const [head, ...from] = await told(released({}));
  expect(head).toMatch(/auto\), as little as fits the device$/);
  const least = from.map((line) => Number(/from ([\d.]+) GiB on$/.exec(line)?.[1]));
  expect(least.length).toBeGreaterThan(2);
  expect([...least].sort((a, b) => b - a)).toEqual(least);
  expect(from[0]).toMatch(/^ {2}nothing: from /);
  expect(from.at(-1)).toMatch(/^ {2}whole layers, 1\d\d % of a forward: from /);
  expect(from.some((line) => /language model \w+.*, vision tower \w+/.test(line))).toBe(true);
  const wide = (least[0] as number) + 0.02;
  const narrow = (least.at(-1) as number) + 0.02;
  expect(await told(released({}), wide * GIB)).toEqual([expect.stringMatching(/: nothing$/)]);
  expect(await told(released({}), narrow * GIB)).toEqual([expect.stringMatching(/: whole layers, /)]);
  expect((await told(released({ recompute: "none" })))[0]).toMatch(/\(model.recompute: none\): nothing$/);
  const peak = async (some: Config) => {
    const line = (await planLines("grpo", some)).find((one) => one.startsWith("  at most: "));
    return Number(/[\d.]+$/.exec(line ?? "")?.[0]);
  };
  expect(await peak(released({ recompute: "layer" }))).toBeLessThan(await peak(released({ recompute: "none" })));
});

test("features that are kept count: of a step's questions, or of all that may be asked again, up to a limit", () => {
  const kept = (stage: Stage, model: object, trainer: object = {}) =>
    partsOf(stage, config({ model: { path: "unused", ...model }, trainer }))["features kept"];
  const question = 729 * 3584 * 2;
  expect(kept("grpo", {})).toBeUndefined();
  expect(kept("grpo", { freezeVision: true })).toBe(8 * question);
  expect(kept("grpo", {}, { steps: 3 })).toBe(3 * 8 * question);
  expect(kept("grpo", {}, { steps: 3, klCoef: 0 })).toBeUndefined();
  expect(kept("grpo", {}, { epochs: 2 })).toBe(2 ** 30);
  const shared = config({ trainer: { steps: 3 }, distributed: { shardReference: true } });
  const names = memoryParts("grpo", shared, seven, seed, { ranks: 2 }).map(({ name }) => name);
  expect(names).toContain("reference");
  expect(names).not.toContain("features kept"); // of a reference whose tower is gathered each time
  expect(kept("sft", { freezeVision: true })).toBeUndefined();
  expect(kept("sft", { freezeVision: true }, { epochs: 2 })).toBe(2 ** 30);
});

test("SFT counts responses, eval its answers", async () => {
  const some = tinyConfig(world, "stages", { trainer: { questionsPerStep: 3, steps: 2 } });
  const sft = await planLines("sft", some);
  expect(sft.find((line) => line.startsWith("tokens a step: "))).toMatch(
    /^tokens a step: [\d,]+ of prompts, [1-9][\d,]* of responses$/,
  );
  const tokenizer = await Tokenizer.load(world.model);
  const samples = await readTrainingData(some);
  const labels = samples.map((sample) => responseIds(sample, tokenizer).length); // what SFT really learns
  const { data, seed: key } = some;
  const report = await checkData(data, {
    ...{ seed: key, modelFolder: world.model, goldOf: (solution) => solution },
    ...{ trainingIsJudged: false, evaluatesDuringTraining: false },
  });
  expect(report.sets[0]?.responseTokens).toEqual(spread(labels));
  const looked = labels.filter((_, i) => i % 3 === 0); // 8 of 24
  const mean = Math.round(looked.reduce((sum, length) => sum + length, 0) / looked.length);
  expect(sft.find((line) => line.startsWith("tokens a step: "))).toMatch(new RegExp(`, ${3 * mean} of responses$`));
  expect(sft).toContain("steps: 2 of 3 records = 0.25 epochs");
  const trained = { ...some, model: { ...some.model, init: "pretrained" as const } };
  expect((await planLines("sft", trained)).find((line) => line.startsWith("model: "))).toMatch(
    /, which are not there yet$/,
  );
  const evaluation = await planLines("eval", some);
  expect(evaluation).toContain("questions: 24, 8 at a time");
  expect(evaluation).toContain("answer: up to 8 tokens");
  expect(evaluation.some((line) => line.includes("optimizer:"))).toBe(false);
});
