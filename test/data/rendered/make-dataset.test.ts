import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readDataset } from "../../../src/data/datasets.ts";
import { letteredOptions } from "../../../src/data/question.ts";
import {
  planVideos,
  type RenderedDataset,
  type RenderedOptions,
  renderDataset,
  taughtVideos,
} from "../../../src/data/rendered/make-dataset.ts";
import type { Sample } from "../../../src/types.ts";

const options: RenderedOptions = {
  seed: 1,
  trainVideos: 3,
  questionsPerVideo: 2,
  sftVideos: 2,
  sftLateShare: 0.5,
  sftGuessShare: 0,
  sftRecords: 8,
  L1: 2,
  L2: 1,
  L3: 2,
};

let folder: string;
let dataset: RenderedDataset;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "grove-dataset-"));
  dataset = await renderDataset(folder, options);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const media = (sample: Sample) =>
  sample.messages.flatMap(({ content }) =>
    typeof content === "string"
      ? []
      : content.flatMap((part) => (part.type === "video" ? [part.video] : part.type === "image" ? [part.image] : [])),
  );

test("every set reads back, with its media in place", async () => {
  expect(dataset.rendered).toBe(8);
  const training = await readDataset({ file: dataset.training, format: "seed-bench-r1" });
  expect(training.map((sample) => sample.id)).toEqual(["0", "2", "4", "1", "3", "5"]); // first questions first
  const sft = await readDataset({ file: dataset.sft, format: "seed-bench-r1-sft" });
  expect(sft).toHaveLength(8);
  expect(sft.every((sample) => /^<think> .* <\/think><answer> [A-D] <\/answer>$/.test(sample.response ?? ""))).toBe(
    true,
  );
  const solved = await readDataset({ file: dataset.solved, format: "seed-bench-r1-sft" });
  expect(solved.map(({ id }) => id)).toEqual(["0-0", "1-0", "2-0", "0-1", "1-1", "2-1"]); // the questions of training, in its order
  const levels = await Promise.all(
    (["L1", "L2", "L3"] as const).map((level) =>
      readDataset({ file: dataset.validation[level], format: "seed-bench-r1" }),
    ),
  );
  expect(levels.map((samples) => samples.length)).toEqual([2, 1, 2]);
  expect(levels[2]!.every((sample) => typeof sample.fields.domain === "string")).toBe(true);
  for (const sample of [...training, ...sft, ...levels.flat()]) {
    const files = media(sample);
    expect(files).toHaveLength(2);
    for (const file of files) expect(existsSync(file), file).toBe(true);
  }
});

test("SFT prompts are worded as the reader words the training questions", async () => {
  const questions = await readDataset({ file: dataset.training, format: "seed-bench-r1" });
  const [taught] = await readDataset({ file: dataset.sft, format: "seed-bench-r1-sft", limit: 1 });
  const text = (sample: Sample) => {
    const content = sample.messages[0]!.content;
    return typeof content === "string"
      ? content
      : content.map((part) => (part.type === "text" ? part.text : "")).join("");
  };
  const question = questions.find((sample) => media(sample)[0] === media(taught!)[0]); // the video's first question
  const asked = question!.fields.options as string[];
  const lettered = /A\. .*\nB\. .*\nC\. .*\nD\. .*/.exec(text(taught!))![0];
  const shown = lettered.split("\n").map((line) => line.slice(3));
  expect([...shown].sort()).toEqual([...asked].sort());
  expect(text(taught!).replace(lettered, letteredOptions(asked))).toBe(text(question!));
  expect(media(taught!)).toEqual(media(question!));
});

test("solved questions are those of training, and their chains of thought are right", async () => {
  const questions = await readDataset({ file: dataset.training, format: "seed-bench-r1" });
  const solved = await readDataset({ file: dataset.solved, format: "seed-bench-r1-sft" });
  const goal = (sample: Sample) => /build the .*?\)/.exec(JSON.stringify(sample.messages))?.[0];
  for (const [i, question] of questions.entries()) {
    const record = solved[i]!;
    expect(media(record)).toEqual(media(question));
    expect(goal(record)).toBe(goal(question));
    const letter = /<answer> ([A-D]) <\/answer>/.exec(record.response ?? "")?.[1];
    const option = new RegExp(`${letter}\\. ([^\\\\"]*)`).exec(JSON.stringify(record.messages))?.[1];
    expect(option).toMatch(/ next$/);
    expect(option).toBe(question.fields.answer);
  }
});

test("of the questions with slips some answer another option than their reasoning names", async () => {
  const slips = await readDataset({ file: dataset.slips, format: "seed-bench-r1-sft" });
  const slipped = slips.filter(({ response }) => /(\w) <\/think><answer> \1 /.exec(response ?? "") === null).length;
  expect(slipped).toBeGreaterThan(0);
  expect(slipped).toBeLessThan(slips.length);
});

test("a second call renders nothing, a lost file is rendered again to the same bytes", async () => {
  const video = path.join(folder, "videos", "workshop", "train-00001.mp4");
  const bytes = await readFile(video);
  const untouched = path.join(folder, "videos", "workshop", "train-00000.mp4");
  const { mtimeMs } = await stat(untouched);
  expect((await renderDataset(folder, options)).rendered).toBe(0);
  await rm(video);
  expect((await renderDataset(folder, options)).rendered).toBe(1);
  expect((await readFile(video)).equals(bytes)).toBe(true);
  expect((await stat(untouched)).mtimeMs).toBe(mtimeMs);
});

test("a larger set keeps the videos it has; another seed keeps none", async () => {
  const before = await readFile(dataset.validation.L1, "utf8");
  const larger = await renderDataset(folder, { ...options, trainVideos: 4 });
  expect(larger.rendered).toBe(1);
  expect(await readFile(larger.validation.L1, "utf8")).toBe(before);
  const other = await renderDataset(folder, { ...options, seed: 2 });
  expect(other.rendered).toBe(8);
  expect(await readFile(other.validation.L1, "utf8")).not.toBe(before);
  expect((await readdir(path.join(folder, "videos", "workshop"))).sort()).toEqual(
    ["L1-00000.mp4", "L1-00001.mp4", "train-00000.mp4", "train-00001.mp4", "train-00002.mp4"], // and no partial file
  );
});

test("chains of thought are about the wanted share of late videos, and about any where a kind runs out", () => {
  const sizes = { ...options, trainVideos: 40, sftVideos: 20, sftLateShare: 0.1 };
  const train = planVideos(sizes).filter((video) => video.split === "train");
  const late = (share: number, sftVideos = 20) => {
    const taught = taughtVideos(train, { ...sizes, sftVideos, sftLateShare: share });
    expect(new Set(taught).size).toBe(sftVideos);
    return taught.filter((video) => video.clip.placed > 2).length;
  };
  expect(late(0.1)).toBe(2);
  expect(late(0.5)).toBe(10);
  expect(late(0, 30)).toBe(10); // 20 of the 40 videos are early
});
