/** Loading, saving, cloning and refusing. */

import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { writeModelFolder } from "../../../src/data/tiny-model-folder.ts";
import { CheckpointError } from "../../../src/errors.ts";
import { packGroups } from "../../../src/model/packed.ts";
import { readConfig } from "../../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../../src/model/qwen2vl/model.ts";
import { partOf } from "../../../src/model/qwen2vl/parameters.ts";
import { SafetensorsFile, writeSafetensors } from "../../../src/model/safetensors.ts";
import { liveTensors, scope } from "../../../src/torch/scope.ts";
import { fromArray, MappedFile, type Tensor } from "../../../src/torch/tensor.ts";
import { FIXTURES, randomGroup, shakenModel, tinyConfig } from "../support.ts";

const root = mkdtempSync(join(tmpdir(), "grove-model-"));
afterAll(() => rmSync(root, { recursive: true }));

const CPU = { device: "cpu", dtype: "float32" } as const;

function values(model: Qwen2VL): Record<string, number[]> {
  return Object.fromEntries(model.parameters.map(({ name, tensor }) => [name, tensor.toNumbers()]));
}

/** A copy of the fixture whose weights were renamed, dropped or reshaped by `edit` (null drops). */
function editedFixture(
  name: string,
  edit: (tensor: string) => { name: string; shape?: number[] } | null,
  surplus: string[] = [],
): string {
  const folder = join(root, name);
  cpSync(FIXTURES, folder, { recursive: true });
  using source = new SafetensorsFile(join(FIXTURES, "model.safetensors"));
  const entries = source.names().flatMap((tensor) => {
    const edited = edit(tensor);
    const shape = edited?.shape ?? [...source.shape(tensor)];
    return edited === null
      ? []
      : [{ name: edited.name, dtype: "float32" as const, shape, read: () => source.tensor(tensor) }];
  });
  const scalar = (): Tensor => fromArray([1], [1]);
  const extra = surplus.map((tensor) => ({ name: tensor, dtype: "float32" as const, shape: [1], read: scalar }));
  writeSafetensors(join(folder, "model.safetensors"), [...entries, ...extra]);
  return folder;
}

test.each(["float32", "bfloat16", "float64"] as const)("%s weights survive saving and loading bit for bit", (dtype) => {
  const folder = join(root, `round-trip-${dtype}`);
  using model = Qwen2VL.random(tinyConfig(), { device: "cpu", dtype, seed: 1 });
  model.save(folder);
  expect(readdirSync(folder).sort()).toEqual(["config.json", "generation_config.json", "model.safetensors"]);
  using loaded = Qwen2VL.load(folder, { device: "cpu", dtype });
  expect(values(loaded)).toEqual(values(model));
  expect({ ...loaded.config, generation: null }).toEqual(model.config);
});

test("shards with an index hold the same weights, and a later save in one file replaces them", () => {
  const folder = join(root, "shards");
  using model = Qwen2VL.random(tinyConfig(), { ...CPU, seed: 2 });
  model.save(folder, { maxShardBytes: 20_000 });
  const shards = readdirSync(folder).filter((name) => name.endsWith(".safetensors"));
  expect(shards.length).toBeGreaterThan(3);
  const index = JSON.parse(readFileSync(join(folder, "model.safetensors.index.json"), "utf8"));
  expect(new Set(Object.values(index.weight_map))).toEqual(new Set(shards));
  {
    using loaded = Qwen2VL.load(folder, CPU);
    expect(values(loaded)).toEqual(values(model));
  }
  model.save(folder);
  expect(readdirSync(folder).filter((name) => name.startsWith("model"))).toEqual(["model.safetensors"]);
});

test("a tied head is stored once, and its gradient joins the embedding's", () => {
  const folder = join(root, "tied");
  using model = Qwen2VL.random(tinyConfig(true), { ...CPU, seed: 3 });
  model.save(folder);
  using file = new SafetensorsFile(join(folder, "model.safetensors"));
  expect(file.names()).not.toContain("lm_head.weight");
  expect(file.metadata).toEqual({ format: "pt" });
  using loaded = Qwen2VL.load(folder, CPU);
  expect(loaded.weights.text.head).toBe(loaded.weights.text.embedding);
  expect(values(loaded)).toEqual(values(model));
});

test("both name layouts give the same model", () => {
  const folder = editedFixture("new-names", (name) => ({
    name: name.startsWith("visual.") ? `model.${name}` : name.replace(/^model\./, "model.language_model."),
  }));
  using original = Qwen2VL.load(FIXTURES, CPU);
  using renamed = Qwen2VL.load(folder, CPU);
  expect(values(renamed)).toEqual(values(original));
});

test("missing, unexpected and misshapen tensors are listed together", () => {
  const folder = editedFixture("broken", (name) => {
    if (name === "model.norm.weight" || name === "visual.blocks.1.norm1.bias") return null;
    if (name === "lm_head.weight") return { name: "lm_head.wait" };
    if (name === "model.layers.0.self_attn.k_proj.weight") return { name, shape: [32, 16] };
    return { name };
  });
  let error: unknown;
  try {
    Qwen2VL.load(folder, CPU);
  } catch (caught) {
    error = caught;
  }
  expect(error).toBeInstanceOf(CheckpointError);
  const { message, details } = error as CheckpointError;
  expect(details.missing).toEqual(["visual.blocks.1.norm1.bias", "model.norm.weight", "lm_head.weight"]);
  expect(details.unexpected).toEqual(["lm_head.wait"]);
  expect(message).toContain("3 missing: visual.blocks.1.norm1.bias, model.norm.weight, lm_head.weight");
  expect(message).toContain("1 misshapen: model.layers.0.self_attn.k_proj.weight: expected [16, 32], got [32, 16]");
});

test("of weights of another family the first names are told, all of them in the details", () => {
  const folder = editedFixture("foreign", (name) => ({ name: `decoder.${name}` }));
  let error: unknown;
  try {
    Qwen2VL.load(folder, CPU);
  } catch (caught) {
    error = caught;
  }
  const { message, details } = error as CheckpointError;
  const [missing, unexpected] = [details.missing, details.unexpected] as [string[], string[]];
  expect(missing.length).toBeGreaterThan(50);
  expect(message).toContain(`${missing.length} missing: ${missing.slice(0, 16).join(", ")}, ...; `);
  expect(message).toMatch(new RegExp(`${unexpected.length} unexpected: decoder\\..*, \\.\\.\\.$`));
});

test("rotary frequencies of old writers are passed over; a tensor under both names is surplus", () => {
  const same = (name: string) => ({ name });
  const old = editedFixture("inv-freq", same, [
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.language_model.rotary_emb.inv_freq",
    "visual.rotary_pos_emb.inv_freq",
  ]);
  using original = Qwen2VL.load(FIXTURES, CPU);
  using loaded = Qwen2VL.load(old, CPU);
  expect(values(loaded)).toEqual(values(original));
  const twice = editedFixture("twice", same, ["model.language_model.norm.weight", "model.inv_freq"]);
  expect(() => Qwen2VL.load(twice, CPU)).toThrow("2 unexpected: model.inv_freq, model.language_model.norm.weight");
});

test("part by part come the weights of the whole, read or drawn, in its order", () => {
  using loaded = Qwen2VL.load(FIXTURES, CPU);
  using drawn = Qwen2VL.random(tinyConfig(true), { ...CPU, seed: 4 });
  for (const [model, parts] of [
    [loaded, Qwen2VL.loadParts(FIXTURES, CPU)],
    [drawn, Qwen2VL.randomParts(tinyConfig(true), { ...CPU, seed: 4 })],
  ] as const) {
    const before = liveTensors().count;
    const found: [string, number[]][] = [];
    for (const part of parts) {
      expect(liveTensors().count - before).toBe(part.length);
      expect(new Set(part.map(({ name }) => partOf(name))).size).toBe(1);
      for (const { name, tensor } of part) {
        found.push([name, tensor.toNumbers()]);
        tensor.free();
      }
    }
    expect(found).toEqual(Object.entries(values(model)));
  }
});

test("a folder that fails to load leaves no tensor behind", () => {
  const folder = editedFixture("cut-while-open", (name) => ({ name }));
  const before = liveTensors();
  // the header is whole, the data is not: found out only while reading
  const path = join(folder, "model.safetensors");
  const read = vi.spyOn(MappedFile, "read").mockImplementationOnce((reads) => {
    truncateSync(path, statSync(path).size - 4000);
    MappedFile.read(reads);
  });
  expect(() => Qwen2VL.load(folder, CPU)).toThrow(/MappedFile\.read.*model\.safetensors.*ended early/s);
  read.mockRestore();
  expect(liveTensors()).toEqual(before);
});

test("everything that serves a model goes along with its checkpoints", async () => {
  const source = join(root, "source");
  const spec = {
    hiddenSize: 32,
    intermediateSize: 40,
    layers: 1,
    heads: 2,
    kvHeads: 1,
    visionWidth: 16,
    visionLayers: 1,
    visionHeads: 2,
  };
  await writeModelFolder(source, { spec, corpus: ["put the cup on the table"] });
  // what the released Qwen2-VL folders and those that transformers 5 writes hold besides
  for (const name of [
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "processor_config.json",
    "video_preprocessor_config.json",
  ])
    writeFileSync(join(source, name), name);
  for (const name of ["README.md", "pytorch_model.bin", "training_args.bin"]) writeFileSync(join(source, name), name);
  using model = Qwen2VL.random(readConfig(source), { ...CPU, seed: 1 });
  const target = join(root, "served");
  model.save(target, { copyFrom: source });
  expect(readdirSync(target).sort()).toEqual([
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
  ]);
  for (const name of readdirSync(target).filter((file) => !/^(config\.json|model)/.test(file))) {
    const [own, theirs] = [target, source].map((folder) => readFileSync(join(folder, name), "utf8")) as [
      string,
      string,
    ];
    if (name === "generation_config.json") expect(JSON.parse(own)).toEqual(JSON.parse(theirs));
    else expect(own, name).toBe(theirs);
  }
  // what vLLM and transformers ask of config.json, in the layout of the release
  const config = JSON.parse(readFileSync(join(target, "config.json"), "utf8"));
  const given = JSON.parse(readFileSync(join(source, "config.json"), "utf8"));
  for (const [key, value] of Object.entries(given))
    if (key !== "torch_dtype" && key !== "vision_token_id")
      expect(config, key).toHaveProperty(
        key,
        key === "vision_config" ? expect.objectContaining(value as object) : value,
      );
});

test("a fresh model is a function of its seed and predicts nearly uniformly", () => {
  const config = tinyConfig();
  using a = Qwen2VL.random(config, { ...CPU, seed: 4 });
  using b = Qwen2VL.random(config, { ...CPU, seed: 4 });
  using c = Qwen2VL.random(config, { ...CPU, seed: 5 });
  expect(values(b)).toEqual(values(a));
  expect(values(c)).not.toEqual(values(a));
  using pass = a.pass(packGroups([randomGroup(config, 6, { videos: [[2, 4, 4]], completions: [20, 9] })]), {
    grad: false,
  });
  for (const entropy of pass.entropy.toNumbers())
    expect(Math.abs(entropy - Math.log(config.text.vocabSize))).toBeLessThan(0.05);
});

test("a clone keeps its values and takes no gradients while the original changes", () => {
  const config = tinyConfig();
  using model = shakenModel(config, 7, "float32");
  using frozen = model.clone();
  const before = values(model);
  scope(() => {
    using pass = model.pass(packGroups([randomGroup(config, 8, { completions: [3] })]), { grad: true });
    pass.backward(pass.logprobs);
    for (const { tensor } of model.parameters) tensor.setGrad(null);
  });
  expect(values(frozen)).toEqual(before);
  expect(frozen.parameters.every(({ tensor }) => !tensor.requiresGrad)).toBe(true);
});

test("eos ids come from generation_config.json", () => {
  expect(readConfig(FIXTURES).eosTokenIds).toEqual([94, 95]);
  expect(readConfig(FIXTURES).text.mropeSection).toEqual([2, 3, 3]);
});

test("a damaged file is refused with its name", () => {
  const folder = join(root, "damaged");
  cpSync(FIXTURES, folder, { recursive: true });
  const path = join(folder, "model.safetensors");
  const bytes = readFileSync(path);
  writeFileSync(path, bytes.subarray(0, bytes.length - 100));
  expect(() => Qwen2VL.load(folder, CPU)).toThrow(
    /damaged.*model\.safetensors: tensor ".*" .* needs \d+ bytes.*cut off/,
  );
  writeFileSync(path, bytes.subarray(0, 5));
  expect(() => Qwen2VL.load(folder, CPU)).toThrow(CheckpointError);
  writeFileSync(join(folder, "config.json"), '{"model_type": "llama"}');
  expect(() => Qwen2VL.load(folder, CPU)).toThrow('expected model_type "qwen2_vl", got "llama"');
});

const TRANSFORMERS = `
import sys, json, torch
from transformers import Qwen2VLForConditionalGeneration
model, info = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
out = model(input_ids=torch.tensor([json.loads(sys.argv[2])]), use_cache=False).logits[0].log_softmax(-1)
print(json.dumps({"keys": [sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")],
                  "eos": model.generation_config.eos_token_id, "tied": model.lm_head.weight is model.get_input_embeddings().weight,
                  "logprobs": out[:-1].gather(-1, torch.tensor(json.loads(sys.argv[2]))[1:, None])[:, 0].tolist()}))
`;

test.for([false, true])("transformers loads what we save (tied head: %s)", { timeout: 180_000 }, (tied, { skip }) => {
  skip(
    spawnSync("python3", ["-c", "import transformers, torch"]).status !== 0,
    "python3 here has no transformers and torch",
  );
  const folder = join(root, `for-transformers-${tied}`);
  using model = shakenModel({ ...tinyConfig(tied), eosTokenIds: [55, 54] }, 9, "float32");
  model.save(folder);
  const ids = [3, 14, 15, 9, 2, 6, 5, 35];
  const run = spawnSync("python3", ["-c", TRANSFORMERS, folder, JSON.stringify(ids)], { encoding: "utf8" });
  expect(run.status, run.stderr).toBe(0);
  const theirs = JSON.parse(run.stdout.trim().split("\n").at(-1) as string);
  expect(theirs.keys).toEqual([[], [], []]);
  expect(theirs.eos).toEqual([55, 54]);
  expect(theirs.tied).toBe(tied);
  const prompt = {
    inputIds: Int32Array.from(ids.slice(0, 1)),
    positions: Int32Array.from([0, 0, 0]),
    nextPosition: 1,
    images: [],
    videos: [],
  };
  using pass = model.pass(packGroups([{ prompt, completions: [Int32Array.from(ids.slice(1))] }]), { grad: false });
  for (const [i, logprob] of pass.logprobs.toNumbers().entries()) {
    expect(Math.abs(logprob - theirs.logprobs[i])).toBeLessThan(2e-5);
  }
});
