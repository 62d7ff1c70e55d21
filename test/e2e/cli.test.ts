/** The commands that need an engine, on a small random model and one rendered video: what they write, and that the parts agree. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import { renderedCorpus } from "../../src/data/rendered/corpus.ts";
import { renderDataset } from "../../src/data/rendered/make-dataset.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { capture } from "../cli/capture.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-cli-e2e-"));
const chats = path.join(folder, "chats.jsonl");
const spec = {
  hiddenSize: 32,
  intermediateSize: 64,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  visionWidth: 32,
  visionLayers: 1,
  visionHeads: 2,
};
const options = {
  seed: 1,
  trainVideos: 1,
  questionsPerVideo: 1,
  sftVideos: 1,
  sftLateShare: 0,
  sftGuessShare: 0,
  sftRecords: 1,
  L1: 1,
  L2: 1,
  L3: 1,
};
let video = "";
let image = "";

/** Flags of a model that is drawn from a seed, on small pictures, without a cache. */
const flags = [
  ...[
    "--set",
    `model.path=${path.join(folder, "model")}`,
    "--set",
    "model.init=random",
    "--dtype",
    "float32",
    "--seed",
    "5",
  ],
  ...[
    "--set",
    "data.resizedHeight=56",
    "--set",
    "data.resizedWidth=84",
    "--set",
    "data.maxFrames=4",
    "--set",
    "data.cacheGib=0",
  ],
  ...["--set", "data.workers=1", "--set", "eval.maxNewTokens=6"],
];

beforeAll(async () => {
  await writeModelFolder(path.join(folder, "model"), { spec, corpus: renderedCorpus() });
  const dataset = await renderDataset(path.join(folder, "data"), options);
  const record = JSON.parse(readFileSync(dataset.validation.L1, "utf8").split("\n")[0] as string);
  video = path.join(dataset.folder, "videos", record.video_source, record.video_basename);
  image = path.join(dataset.folder, "images", record.video_source, record.current_observation_basename);
  const withMedia = [
    { type: "video", video: path.relative(folder, video) }, // beside the file of chats
    { type: "image", image },
    { type: "text", text: "What is next?" },
  ];
  const lines = [
    {
      messages: [
        { role: "user", content: withMedia },
        { role: "assistant", content: "<answer>B</answer>" },
      ],
    },
    {
      messages: [
        { role: "user", content: "Hello" },
        { role: "assistant", content: [{ type: "text", text: "Hi." }] },
      ],
    },
  ];
  writeFileSync(chats, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
});
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(folder, { recursive: true }));

test("inspect writes the model's inputs; score's ids are their beginning", async () => {
  const inputs = path.join(folder, "inputs.safetensors");
  capture(process.stdout);
  expect(await main(["inspect", ...flags, "--input", chats, "--output", inputs])).toBe(0);
  const scores = await scoreChats();

  using file = new SafetensorsFile(inputs);
  const shapes = Object.fromEntries(
    file.names().map((name) => {
      using tensor = file.tensor(name);
      return [name, [tensor.dtype, ...tensor.shape]];
    }),
  );
  const [first, second] = ["0.", "1."].map((prefix) => (shapes[`${prefix}input_ids`] as unknown[])[2] as number);
  expect(shapes).toEqual({
    "0.input_ids": ["int64", 1, first],
    "0.position_ids": ["int64", 3, 1, first],
    "0.pixel_values": ["float32", 24, 1176],
    "0.image_grid_thw": ["int64", 1, 3],
    "0.pixel_values_videos": ["float32", 48, 1176],
    "0.video_grid_thw": ["int64", 1, 3],
    "1.input_ids": ["int64", 1, second],
    "1.position_ids": ["int64", 3, 1, second],
  });
  using ids = file.tensor("0.input_ids");
  using grid = file.tensor("0.video_grid_thw");
  expect(grid.toNumbers()).toEqual([2, 4, 6]);
  // The chat template ends the turn with a line break, which score leaves out.
  expect(ids.toNumbers().slice(0, -1)).toEqual([...scores[0].prompt_ids, ...scores[0].completion_ids]);
});

test("score gives a finite log-probability for each token of the last turn, and the same for the same chat", async () => {
  const scores = await scoreChats();
  expect(scores).toHaveLength(2);
  expect(scores.map(({ id }) => id)).toEqual(["1", "2"]);
  for (const { completion_ids, logprobs } of scores) {
    expect(logprobs).toHaveLength(completion_ids.length);
    for (const logprob of logprobs) expect(logprob).toBeLessThan(0);
  }
  expect(await scoreChats()).toEqual(scores);
});

test("generate writes one greedy answer with its log-probabilities, and prints the same text", async () => {
  const out = path.join(folder, "answers.jsonl");
  const question = ["--question", "What is next?", "--video", video, "--image", image];
  expect(await main(["generate", ...flags, ...question, "--output", out])).toBe(0);
  const { completions } = JSON.parse(readFileSync(out, "utf8"));
  expect(completions).toHaveLength(1);
  expect(completions[0].ids.length).toBeGreaterThan(0);
  expect(completions[0].ids.length).toBeLessThanOrEqual(6);
  for (const logprob of completions[0].logprobs) expect(logprob).toBeLessThan(0);

  const printed = capture(process.stdout);
  expect(await main(["generate", ...flags, ...question])).toBe(0);
  expect(printed.text).toBe(`${completions[0].text}\n`);
});

interface Score {
  id: string;
  prompt_ids: number[];
  completion_ids: number[];
  logprobs: number[];
}

async function scoreChats(): Promise<[Score, Score]> {
  const out = path.join(folder, "scores.jsonl");
  expect(await main(["score", ...flags, "--input", chats, "--output", out])).toBe(0);
  const lines = readFileSync(out, "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line)) as [Score, Score];
}
