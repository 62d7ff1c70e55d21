import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { PromptLoader, type PromptLoaderOptions } from "../../src/data/loader.ts";
import type { DataOptions } from "../../src/data/options.ts";
import { Processor } from "../../src/data/processor.ts";
import type { ContentPart, Sample } from "../../src/types.ts";
import { dataOptions, picture, qwen2VlFolder, temporaryFolder, writeNumberedClip } from "./helpers.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder.path, name);
let processor: Processor;
const open: PromptLoader[] = [];

beforeAll(async () => {
  processor = await Processor.load(qwen2VlFolder(), { ...dataOptions, resizedHeight: 56, resizedWidth: 56 });
  await writeNumberedClip(at("clip.mp4"), { frames: 12, rate: "6" });
  await sharp(picture(40, 60), { raw: { width: 60, height: 40, channels: 3 } })
    .png()
    .toFile(at("still.png"));
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((loader) => loader.close()));
});
afterAll(folder.remove);

const warnings: Record<string, unknown>[] = [];
const log = { warn: (fields: Record<string, unknown>) => void warnings.push(fields) };

function loader(config: Partial<DataOptions> = {}, more: Partial<PromptLoaderOptions> = {}): PromptLoader {
  const made = new PromptLoader({ processor, config: { ...dataOptions, ...config }, log, ...more });
  open.push(made);
  return made;
}

let line = 0;
function sample(id: string, ...media: string[]): Sample {
  const content = media.map(
    (file): ContentPart =>
      file.endsWith(".mp4") ? { type: "video", video: at(file) } : { type: "image", image: at(file) },
  );
  content.push({ type: "text", text: `question ${id}` });
  const source = { file: "q.jsonl", line: ++line };
  return { id, messages: [{ role: "user", content }], solution: "", fields: {}, source };
}

test("video and image become a prompt, decoded on a worker thread", async () => {
  const prompt = await loader().load(sample("a", "clip.mp4", "still.png"));
  expect(prompt?.videos.map((v) => v.grid)).toEqual([[2, 4, 4]]);
  expect(prompt?.images.map((v) => v.grid)).toEqual([[1, 4, 4]]);
  expect(prompt?.inputIds.filter((id) => id === processor.tokenIds.video).length).toBe(8);
});

test("a prompt's length is known before anything is decoded, whatever the sizes of its media", async () => {
  const free = await Processor.load(qwen2VlFolder(), { ...dataOptions, minPixels: 56 * 56, maxPixels: 140 * 140 });
  await sharp(picture(300, 90), { raw: { width: 90, height: 300, channels: 3 } })
    .jpeg()
    .toFile(at("tall.jpg"));
  await writeNumberedClip(at("long.mp4"), { frames: 40, rate: "6" });
  const questions = [
    sample("both", "clip.mp4", "still.png"),
    sample("tall", "tall.jpg", "long.mp4"),
    sample("no media, and more to read than the others have"),
  ];
  for (const rule of [processor, free]) {
    for (const question of questions) {
      const told = await loader({}, { processor: rule }).length(question);
      const made = loader({}, { processor: rule });
      expect(told).toBe((await made.load(question))?.inputIds.length);
      expect(await made.length(question), "once it is loaded").toBe(told);
    }
  }
});

test("a question that cannot be measured has no length, and nobody is told before it is loaded", async () => {
  const made = loader({ onBadSample: "skip", maxBadSamples: 0 });
  warnings.length = 0;
  expect(await made.length(sample("gone", "nowhere.png"))).toBe(0);
  expect(await made.length(sample("gone", "nowhere.mp4"))).toBe(0);
  expect(made.badSamples).toBe(0);
  expect(warnings).toEqual([]);
});

test("two loads at a time share one decode, later ones come from memory", async () => {
  const made = loader();
  writeFileSync(
    at("once.png"),
    await sharp(picture(30, 30), { raw: { width: 30, height: 30, channels: 3 } })
      .png()
      .toBuffer(),
  );
  const question = sample("once", "once.png");
  const [first, second] = await Promise.all([made.load(question), made.load(question)]);
  expect(second).toBe(first);
  rmSync(at("once.png"));
  expect(await made.load(question)).toBe(first);
});

test("a record read twice, its options shuffled and not, has two prompts", async () => {
  const made = loader();
  const [train, evaluation] = [sample("same"), sample("same")].map((one) => ({
    ...one,
    source: { file: "q.jsonl", line: 1 },
  })) as [Sample, Sample];
  evaluation.messages = [{ role: "user", content: "other order" }];
  expect((await made.load(train))?.sample).toBe(train);
  expect((await made.load(evaluation))?.sample).toBe(evaluation);
});

test("a prefetched prompt is there before it is asked for, and is the one a plain load makes", async () => {
  const png = await sharp(picture(30, 30), { raw: { width: 30, height: 30, channels: 3 } })
    .png()
    .toBuffer();
  writeFileSync(at("ahead.png"), png);
  const question = sample("ahead", "ahead.png");
  const plain = await loader().load(question);
  const made = loader({ workers: 1 });
  made.prefetch([question]);
  await made.load(sample("behind", "still.png")); // the only worker takes it after the prefetched one
  rmSync(at("ahead.png"));
  expect(await made.load(question)).toEqual(plain);
});

test("a failure ahead of time shows only when the sample is loaded", async () => {
  const made = loader();
  const question = sample("gone", "nowhere.png");
  made.prefetch([question]);
  await made.load(sample("behind", "still.png"));
  await expect(made.load(question)).rejects.toThrow(/\(sample gone\)/);
});

test("memory is bounded: the prompt used longest ago is built anew", async () => {
  const one = await loader().load(sample("m0", "still.png"));
  const bytes = one!.images[0]!.pixels.byteLength + one!.inputIds.byteLength * 4;
  const made = loader({}, { memoryBytes: bytes * 2.5 });
  const questions = ["m1", "m2", "m3"].map((id) => sample(id, "still.png"));
  const built = await Promise.all(questions.slice(0, 2).map((question) => made.load(question)));
  await made.load(questions[0]!); // m2 is now the oldest
  await made.load(questions[2]!);
  expect(await made.load(questions[0]!)).toBe(built[0]);
  expect(await made.load(questions[1]!)).not.toBe(built[1]);
});

test("onBadSample error: file, line, sample and the media file are named", async () => {
  const question = sample("broken", "nowhere.mp4");
  const failure = loader().load(question);
  await expect(failure).rejects.toThrow(
    new RegExp(`q\\.jsonl:${question.source.line} \\(sample broken\\): .*nowhere\\.mp4: no such file`),
  );
  await expect(failure).rejects.toMatchObject({ name: "DataError", cause: { name: "MediaError" } });
});

test("onBadSample skip: null, counted once and logged, until there are too many", async () => {
  const made = loader({ onBadSample: "skip", maxBadSamples: 2 });
  writeFileSync(at("junk.mp4"), "no video");
  warnings.length = 0;
  const [missing, junk, late] = [sample("s1", "nowhere.mp4"), sample("s2", "junk.mp4"), sample("s3", "junk.mp4")];
  made.prefetch([missing]);
  expect(await Promise.all([made.load(missing), made.load(missing)])).toEqual([null, null]);
  expect(await made.load(missing)).toBeNull();
  expect(await made.load(sample("fine", "still.png"))).not.toBeNull();
  expect(await made.load(junk)).toBeNull();
  expect(made.badSamples).toBe(2);
  expect(warnings.map(({ sampleId, code }) => [sampleId, code])).toEqual([
    ["s1", "MEDIA"],
    ["s2", "MEDIA"],
  ]);
  await expect(made.load(late)).rejects.toThrow(/\(sample s3\): 3 samples were unusable, data\.maxBadSamples is 2/);
});

test("a prompt over the limit is a bad sample like any other", async () => {
  const short = await Processor.load(qwen2VlFolder(), { ...dataOptions, maxPromptTokens: 10 });
  const made = loader({ onBadSample: "skip", maxBadSamples: 1 }, { processor: short });
  expect(await made.load(sample("long", "still.png"))).toBeNull();
  expect(made.badSamples).toBe(1);
});

test("frames are cached on disk when there is room for them", async () => {
  const cacheDir = at("cache");
  await loader({ cacheDir }).load(sample("c0", "clip.mp4"));
  expect(existsSync(cacheDir)).toBe(false);
  mkdirSync(cacheDir);
  const first = await loader({ cacheDir, cacheGib: 1 }).load(sample("c1", "clip.mp4"));
  const second = await loader({ cacheDir, cacheGib: 1 }).load(sample("c1", "clip.mp4"));
  expect(second?.videos).toEqual(first?.videos);
});
