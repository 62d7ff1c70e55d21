/** SEED-Bench-R1's and LongVideoBench's own files, in hand-written records of their shape. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type DataFormat, readDataset, readRecords } from "../../src/data/datasets.ts";
import { PromptLoader } from "../../src/data/loader.ts";
import { Processor } from "../../src/data/processor.ts";
import type { Sample } from "../../src/types.ts";
import { dataOptions, qwen2VlFolder, recordsFolder, renderMedia, temporaryFolder } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
const sizes = { ...dataOptions, resizedHeight: 256, resizedWidth: 256 };
let processor: Processor;
let loader: PromptLoader;
beforeAll(async () => {
  processor = await Processor.load(qwen2VlFolder(), sizes);
  loader = new PromptLoader({ processor, config: sizes });
});
afterAll(() => loader.close());

const read = (set: "seed-bench-r1" | "longvideobench", name: string, format: DataFormat, shuffleOptions = false) =>
  readDataset({ file: join(recordsFolder(set), name), mediaRoot: folder.path, format }, { shuffleOptions, seed: 42 });

const kinds = ({ messages: [message] }: Sample) =>
  typeof message?.content === "string" ? [] : (message?.content ?? []).map(({ type }) => type);

const textOf = ({ messages: [message] }: Sample) => {
  const last = typeof message?.content === "string" ? undefined : message?.content.at(-1);
  return last?.type === "text" ? last.text : "";
};

describe("SEED-Bench-R1", () => {
  test.each([
    ["training_6k.jsonl", "seed-bench-r1", ["39", "40", "41"], ["video", "none", "video"]],
    ["training_with_cot_6k.jsonl", "seed-bench-r1-sft", ["39", "40"], ["video", "none"]],
    ["validation_L1.jsonl", "seed-bench-r1", ["115", "116"], ["video", "none"]],
    ["validation_L2.jsonl", "seed-bench-r1", ["2044"], ["video"]],
    [
      "validation_L3.jsonl",
      "seed-bench-r1",
      ["ca6e9ec9-1f0c-4b52-9a8e-0d3a7b6c55e1_2", "5b11d2f0-77aa-4f0e-8c6b-2f4c1f3b9e02_0"],
      ["video", "none"],
    ],
  ] as const)("%s: every record becomes a prompt with the media it has", async (name, format, ids, videos) => {
    const samples = await read("seed-bench-r1", name, format, name.startsWith("training"));
    expect(samples.map(({ id }) => id)).toEqual(ids);
    expect(samples.map(kinds)).toEqual(
      videos.map((video) => (video === "none" ? ["image", "text"] : ["video", "image", "text"])),
    );
    await renderMedia(samples);
    for (const [i, sample] of samples.entries()) {
      expect(sample.solution).toMatch(/^<answer>[A-D]\. ?.*<\/answer>$/);
      const prompt = await loader.load(sample);
      expect(prompt?.images.map(({ grid }) => grid)).toEqual([[1, 18, 18]]); // 256 asked, hence 252
      expect(prompt?.videos.map(({ grid }) => grid)).toEqual(videos[i] === "video" ? [[2, 18, 18]] : []);
    }
  });

  test("the SFT record's prompt is, word for word, the one that a training record makes", async () => {
    const [training] = await read("seed-bench-r1", "training_6k.jsonl", "seed-bench-r1");
    const [taught] = await read("seed-bench-r1", "training_with_cot_6k.jsonl", "seed-bench-r1-sft");
    const frame = (sample: Sample | undefined) => textOf(sample as Sample).replaceAll(/\n[A-D]\. .*/g, "\n?");
    expect(frame(taught)).toBe(frame(training));
    expect(taught?.messages.map(({ role }) => role)).toEqual(["user"]);
    expect(taught?.response).toMatch(/^<think>.*<\/think><answer>B\. grab onion<\/answer>$/);
  });

  test("L3 keeps domain and scenario", async () => {
    const samples = await read("seed-bench-r1", "validation_L3.jsonl", "seed-bench-r1");
    expect(samples.map(({ fields }) => [fields.domain, fields.scenario])).toEqual([
      ["Hobbies", "baking"],
      ["Work", "bike mechanic"],
    ]);
  });
});

describe("LongVideoBench", () => {
  test("video only, two to five candidates, the gold letter is correct_choice's", async () => {
    const samples = await read("longvideobench", "lvb_val.json", "longvideobench");
    expect(samples.map(({ id, solution }) => [id, solution])).toEqual([
      ["86CxyhFV9MI_0", "<answer>B.</answer>"],
      ["x0abcDEFghi_3", "<answer>D.</answer>"],
      ["Zz9_yYx8w7v_1", "<answer>A.</answer>"],
    ]);
    expect(samples.map(kinds)).toEqual(new Array(3).fill(["video", "text"]));
    expect(textOf(samples[0] as Sample)).toMatch(
      /^In the video, .*\?\nA\. a vase\n.*\nE\. a clock\n Output the thinking/s,
    );
    expect(textOf(samples[2] as Sample)).toContain("?\nA. Yes\nB. No\n Output");
    expect(samples.map(({ fields }) => [fields.duration_group, fields.duration])).toEqual([
      [15, 12],
      [60, 48.5],
      [3600, 1803.25],
    ]);
    expect(samples.map(({ source }) => source.line)).toEqual([2, 29, 55]);
    await renderMedia(samples.slice(0, 1));
    const prompt = await loader.load(samples[0] as Sample);
    expect(prompt?.videos.map(({ grid }) => grid)).toEqual([[2, 18, 18]]);
    expect(samples[0]?.messages[0]?.content[0]).toEqual({
      type: "video",
      video: join(folder.path, "videos/86CxyhFV9MI.mp4"),
    });
  });

  test("shuffled on request, the gold letter follows, equal candidates or not", async () => {
    const file = join(folder.path, "shuffled.json");
    const record = {
      question: "?",
      candidates: ["same", "same", "right", "same"],
      correct_choice: 2,
      video_path: "v.mp4",
    };
    writeFileSync(file, JSON.stringify(Array.from({ length: 30 }, (_, i) => ({ ...record, id: `q${i}` }))));
    const samples = await readDataset({ file, format: "longvideobench" }, { shuffleOptions: true, seed: 3 });
    const letters = samples.map(({ solution }) => solution[8] as string);
    expect(new Set(letters).size).toBe(4);
    for (const [i, sample] of samples.entries()) expect(textOf(sample)).toContain(`\n${letters[i]}. right\n`);
  });

  const good = { id: "g", question: "?", candidates: ["x", "y"], correct_choice: 1, video_path: "v.mp4" };
  test.each([
    [
      "a choice outside",
      { ...good, correct_choice: 2 },
      /:4 .*"correct_choice" must be a whole number from 0 to 1, got 2/,
    ],
    ["no choice (the test split)", { ...good, correct_choice: undefined }, /:4 .*"correct_choice".*it is missing/],
    ["a letter", { ...good, correct_choice: "B" }, /:4 .*"correct_choice".*got "B"/],
    ["one candidate", { ...good, candidates: ["x"], correct_choice: 0 }, /:4 .*"candidates" must be a list of 2 to 5/],
    ["six candidates", { ...good, candidates: [..."abcdef"] }, /:4 .*"candidates" must be a list of 2 to 5/],
    ["no video", { ...good, video_path: "" }, /:4 .*"video_path"/],
    ["a number for a record", 7, /:4: expected a JSON object, got 7/],
  ])("%s is an error at the record's own line", async (_, record, message) => {
    const file = join(folder.path, "bad.json");
    const first = JSON.stringify({ ...good, question: 'a "[quoted\\" {brace' });
    writeFileSync(file, `[\n${first}\n,\n  ${JSON.stringify(record)}]`);
    await expect(readDataset({ file, format: "longvideobench" })).rejects.toThrow(message as RegExp);
  });

  test("records that share a line are told apart by their columns, as bad samples too", async () => {
    const file = join(folder.path, "one-line.json");
    const bad = [{ ...good, video_path: "" }, null, { ...good, correct_choice: 5 }];
    const text = JSON.stringify([good, ...bad]);
    writeFileSync(file, `${text.slice(0, -1)},\n${JSON.stringify(good)}]`);
    const source = { file, format: "longvideobench" } as const;
    const places: unknown[] = [];
    for await (const { where } of readRecords(source)) places.push([where.line, where.column]);
    const second = text.indexOf("{", 2) + 1;
    const third = text.indexOf("null") + 1;
    expect(places).toEqual([
      [1, 2],
      [1, second],
      [1, third],
      [1, third + 5],
      [2, undefined],
    ]);
    const skip = { onBadSample: "skip", log: { warn: () => {} } } as const;
    expect(await readDataset(source, { ...skip, maxBadSamples: 3 })).toHaveLength(2);
    const message = new RegExp(`one-line\\.json:1:${third + 5}: 3 samples were unusable`);
    await expect(readDataset(source, { ...skip, maxBadSamples: 2 })).rejects.toThrow(message);
  });

  test.each([
    ["[1, 2", /malformed JSON/],
    ['{"a": 1}', /expected a JSON list/],
  ])("a file that holds %s is no data set", async (text, message) => {
    const file = join(folder.path, "none.json");
    writeFileSync(file, text);
    await expect(readDataset({ file, format: "longvideobench" })).rejects.toThrow(message);
  });
});
