import { cpSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Media } from "../../src/data/options.ts";
import { cutPatches } from "../../src/data/patches.ts";
import { mediaOf, Processor } from "../../src/data/processor.ts";
import type { ContentPart, Sample } from "../../src/types.ts";
import { dataOptions, picture, qwen2VlFolder, temporaryFolder } from "./helpers.ts";

let processor: Processor;
const folder = temporaryFolder();
beforeAll(async () => {
  processor = await Processor.load(qwen2VlFolder(), dataOptions);
});
afterAll(folder.remove);

const sample = (...content: ContentPart[]): Sample => ({
  id: "q7",
  messages: [{ role: "user", content }],
  solution: "",
  fields: {},
  source: { file: "questions.jsonl", line: 12 },
});
const text = (value: string): ContentPart => ({ type: "text", text: value });
const image: Media = { kind: "image", frames: 1, height: 56, width: 28, data: picture(56, 28) };
const video: Media = { kind: "video", frames: 4, height: 28, width: 84, data: picture(28, 84, 4) };
const cut = ({ patchRule }: Processor) =>
  [video, image].map((media) => ({ kind: media.kind, input: cutPatches(media, patchRule) }));
const both = sample({ type: "video", video: "v.mp4" }, { type: "image", image: "i.png" }, text("What next?"));

test("placeholders are repeated once per merged patch, media stay in order", () => {
  const prompt = processor.build(both, cut(processor));
  const { image: imageId, video: videoId } = processor.tokenIds;
  const runs = Array.from(prompt.inputIds).filter((id) => id === imageId || id === videoId);
  expect(runs).toEqual([...new Array(6).fill(videoId), imageId, imageId]);
  expect(prompt.videos.map((v) => v.grid)).toEqual([[2, 2, 6]]);
  expect(prompt.images.map((v) => v.grid)).toEqual([[1, 4, 2]]);
  expect(processor.tokenizer.decode(prompt.inputIds, { skipSpecialTokens: true })).toBe(
    "system\nYou are a helpful assistant.\nuser\nWhat next?\nassistant\n",
  );
});

test("positions follow the media: a video of 2 x 1 x 3 merged patches moves the text by 3", () => {
  const { inputIds, positions, nextPosition } = processor.build(both, cut(processor));
  const length = inputIds.length;
  expect(positions.length).toBe(3 * length);
  const start = inputIds.indexOf(processor.tokenIds.video);
  expect(Array.from(positions.subarray(start, start + 7))).toEqual([0, 0, 0, 1, 1, 1, 3].map((p) => p + start));
  // 6 + 2 placeholders take 3 + 2 positions.
  expect(nextPosition).toBe(length - 3);
  expect(Math.max(...positions)).toBe(nextPosition - 1);
});

test("mediaOf names the files in order", () => {
  expect(mediaOf(both)).toEqual([
    { kind: "video", file: "v.mp4" },
    { kind: "image", file: "i.png" },
  ]);
});

test("a prompt that is too long is refused, never cut", async () => {
  const short = await Processor.load(qwen2VlFolder(), { ...dataOptions, maxPromptTokens: 20 });
  expect(() => short.build(both, cut(short))).toThrow(/q7: prompt has \d+ tokens, the limit is 20/);
  const { length } = processor.build(both, cut(processor)).inputIds;
  const exact = await Processor.load(qwen2VlFolder(), { ...dataOptions, maxPromptTokens: length });
  expect(exact.build(both, cut(exact)).inputIds.length).toBe(length);
});

test("a placeholder written into the question is refused by file, line and sample", () => {
  const forged = sample(text("What is <|image_pad|>?"));
  expect(() => processor.build(forged, [])).toThrow(
    /questions\.jsonl:12 \(sample q7\): the chat has 1 image placeholders for 0/,
  );
});

test("reads mean, std and patch size of the folder, refuses unusable ones", async () => {
  const own = join(folder.path, "own");
  cpSync(qwen2VlFolder(), own, { recursive: true });
  const config = join(own, "preprocessor_config.json");
  writeFileSync(config, JSON.stringify({ patch_size: 7, merge_size: 4, image_mean: [0, 0, 0], image_std: [1, 1, 1] }));
  const other = await Processor.load(own, { ...dataOptions, resizedHeight: 64, resizedWidth: 64 });
  expect(other.sizeRule).toMatchObject({ factor: 28, resizedHeight: 64 });
  expect(other.build(both, cut(other)).images[0]?.grid).toEqual([1, 8, 4]);
  writeFileSync(config, JSON.stringify({ patch_size: "14" }));
  await expect(Processor.load(own, dataOptions)).rejects.toThrow(/patch_size must be a positive integer, got "14"/);
  rmSync(config);
  await expect(Processor.load(own, dataOptions)).rejects.toThrow(/preprocessor_config\.json: cannot be read/);
});
