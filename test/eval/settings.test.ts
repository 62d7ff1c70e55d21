import { copyFileSync, mkdirSync, mkdtempSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { changedSettings, decidingSettings, runSettings } from "../../src/eval/settings.ts";

const root = mkdtempSync(path.join(tmpdir(), "grove-settings-"));
afterAll(() => rmSync(root, { recursive: true }));
const folder = path.join(root, "model");
mkdirSync(folder);
const weights = path.join(folder, "model.safetensors");
const questions = path.join(root, "questions.jsonl");

/** A file of one tensor of `count` float32, all zero. */
function writeWeights(name: string, count = 4): void {
  const header = Buffer.from(
    JSON.stringify({ [name]: { dtype: "F32", shape: [count], data_offsets: [0, 4 * count] } }),
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(weights, Buffer.concat([length, header, Buffer.alloc(4 * count)]));
  utimesSync(weights, 1e9, 1e9);
}

writeWeights("a");
writeFileSync(questions, "{}\n");
const config = (more: object = {}): Config => {
  const { data, ...rest } = more as { data?: object };
  const evalSets = { L1: { file: questions, format: "seed-bench-r1" } };
  return configSchema.parse({ model: { path: folder }, data: { eval: evalSets, ...data }, ...rest });
};
const changed = (now: object) => changedSettings(decidingSettings(config()), decidingSettings(config(now)));

test("everything that decides an answer is written down", () => {
  const settings = decidingSettings(config());
  expect(settings).toMatchObject({
    model: { path: folder, init: "pretrained", weights: expect.stringMatching(/^[0-9a-f]{64}$/) },
    seed: 42,
    dtype: "bfloat16",
    data: { fps: 2, minFrames: 4, maxFrames: 16, maxPixels: 12845056, maxPromptTokens: 8192 },
    promptTemplate: expect.stringContaining("{question}\n{options}\n Output the thinking process in <think>"),
    eval: { greedy: true, maxNewTokens: 256 },
    compat: { firstLetterReward: false },
  });
  expect(JSON.parse(JSON.stringify(settings))).toEqual(settings);
});

test.each([
  [{ seed: 43 }, ["seed: 42 -> 43"]],
  [{ dtype: "float32" }, ['dtype: "bfloat16" -> "float32"']],
  [{ data: { maxFrames: 8 } }, ["data.maxFrames: 16 -> 8"]],
  [
    { data: { resizedHeight: 256, resizedWidth: 256 } },
    ["data.resizedHeight: unset -> 256", "data.resizedWidth: unset -> 256"],
  ],
  [{ eval: { greedy: false } }, ["eval.greedy: true -> false"]],
  [{ compat: { firstLetterReward: true } }, ["compat.firstLetterReward: false -> true"]],
  [{ device: "cuda:1", threads: 3, runDir: "elsewhere", eval: { batchSize: 3, consistency: true } }, []],
  [{ data: { onBadSample: "skip", maxBadSamples: 3 } }, []],
  [{ data: { workers: 7, cacheGib: 0, prefetch: 0 }, trainer: { klCoef: 0 }, compat: { hiddenTopK: true } }, []],
  [{ data: { eval: { L1: { file: questions, format: "seed-bench-r1", benchmark: "seed-bench-r1-L1" } } } }, []],
  [
    { data: { eval: { L1: { file: questions, format: "seed-bench-r1", limit: 2 } } } },
    ["data.eval.L1.limit: unset -> 2"],
  ],
])("%j is told by name", (now, changes) => {
  expect(changed(now)).toEqual(changes);
});

test("other weights under the same name, size and time are other weights", () => {
  const before = decidingSettings(config());
  writeWeights("b");
  expect(changedSettings(before, decidingSettings(config()))).toEqual([expect.stringMatching(/^model\.weights: /)]);
  writeWeights("a");
  expect(changedSettings(before, decidingSettings(config()))).toEqual([]);
});

test("a touched tokenizer, or changed questions, are another evaluation; a torn weight file is no exception", () => {
  const before = decidingSettings(config());
  copyFileSync(questions, path.join(folder, "tokenizer.json"));
  expect(changedSettings(before, decidingSettings(config()))).toEqual([expect.stringMatching(/^model\.files: /)]);
  rmSync(path.join(folder, "tokenizer.json"));
  writeFileSync(questions, "{}\n{}\n");
  expect(changedSettings(before, decidingSettings(config()))).toEqual([expect.stringMatching(/^questions: /)]);
  for (const size of [20, 3, 0]) {
    truncateSync(weights, size);
    expect(decidingSettings(config()).model.weights).not.toBe(before.model.weights);
  }
});

test("a run folder in the model folder, or the model folder itself, changes nothing by its answers", () => {
  const before = decidingSettings(config());
  mkdirSync(path.join(folder, "eval"));
  const names = [
    "answers-L1.jsonl",
    "answers-L1.shard-1-of-2.jsonl",
    "evaluation.json",
    "results.json",
    "evaluation.yaml",
  ];
  for (const name of names) writeFileSync(path.join(folder, name), "");
  expect(decidingSettings(config())).toEqual(before);
  for (const name of ["eval", ...names]) rmSync(path.join(folder, name), { recursive: true });
});

test("what it ran on", async () => {
  const ran = await runSettings(config({ device: "cpu" }), { torch: "2.13.0", threads: 3, deviceName: "cpu" });
  expect(ran).toMatchObject({
    device: "cpu",
    threads: 3,
    batchSize: 64,
    versions: { libtorch: "2.13.0", node: process.version },
  });
  expect(ran.versions.grove).toMatch(/^\d+\.\d+\.\d+/);
  expect(ran.versions.ffmpeg).not.toBe("");
});

test("an adapter that is merged decides, and so do its files; without one nothing is noted", () => {
  expect(decidingSettings(config()).model).not.toHaveProperty("adapter");
  const adapter = path.join(root, "adapter");
  mkdirSync(adapter);
  const file = path.join(adapter, "adapter_model.safetensors");
  writeFileSync(file, "a");
  const model = { path: folder, adapter };
  expect(changed({ model })).toEqual([
    `model.adapter: unset -> ${JSON.stringify(adapter)}`,
    expect.stringMatching(/^model\.adapterFiles: unset -> /),
  ]);
  const before = decidingSettings(config({ model }));
  writeFileSync(file, "another");
  expect(changedSettings(before, decidingSettings(config({ model })))).toEqual([
    expect.stringMatching(/^model\.adapterFiles: /),
  ]);
});
