import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type CheckOptions, checkData, type DataReport } from "../../src/data/check-data.ts";
import { BAD_KINDS, NOTE_KINDS } from "../../src/data/check-records.ts";
import { spread } from "../../src/data/check-set.ts";
import { reportText } from "../../src/data/check-table.ts";
import type { DataSource } from "../../src/data/datasets.ts";
import { readDataset } from "../../src/data/datasets.ts";
import { PromptLoader } from "../../src/data/loader.ts";
import type { DataOptions } from "../../src/data/options.ts";
import { Processor } from "../../src/data/processor.ts";
import { mediaTokens } from "../../src/data/prompt-length.ts";
import { dataOptions, qwen2VlFolder, recordsFolder, renderMedia, temporaryFolder } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
const at = (name: string) => join(folder.path, name);
const fixed = { ...dataOptions, resizedHeight: 56, resizedWidth: 56 };
const options: CheckOptions = {
  seed: 42,
  modelFolder: qwen2VlFolder(),
  goldOf: (solution) => solution.replaceAll(/<\/?answer>/g, "").trim(),
  trainingIsJudged: true,
  evaluatesDuringTraining: false,
};

interface Sets {
  train?: DataSource[];
  eval?: Record<string, DataSource>;
}
const check = (sets: Sets, data: Partial<DataOptions> = {}, more: Partial<CheckOptions> = {}): Promise<DataReport> =>
  checkData({ ...fixed, ...data, train: [], eval: {}, ...sets }, { ...options, ...more });

/** The hand-written records and their media below one root. */
const published: Required<Sets> = {
  train: [
    {
      file: join(recordsFolder("seed-bench-r1"), "training_6k.jsonl"),
      mediaRoot: at("media"),
      format: "seed-bench-r1",
    },
  ],
  eval: {
    L3: {
      file: join(recordsFolder("seed-bench-r1"), "validation_L3.jsonl"),
      mediaRoot: at("media"),
      format: "seed-bench-r1",
    },
    long: {
      file: join(recordsFolder("longvideobench"), "lvb_val.json"),
      mediaRoot: at("media"),
      format: "longvideobench",
    },
  },
};
const cot: DataSource = {
  file: join(recordsFolder("seed-bench-r1"), "training_with_cot_6k.jsonl"),
  mediaRoot: at("media"),
  format: "seed-bench-r1-sft",
};

/** A generic record a line; `broken.jsonl` has one of each fault. */
const good = { question: "Which?", options: ["x", "y"], answer: "x", image: "still.png" };
const broken: [kind: string, line: unknown][] = [
  ["", { ...good, id: "fine" }],
  ["malformed line", '{"question": '],
  ["malformed line", "[1, 2]"],
  ["unusable record", { ...good, id: "a", question: undefined }],
  ["answer not among the options", { ...good, id: "b", answer: "z" }],
  ["no gold answer", { id: "c", question: "Why?", answer: " " }],
  ["missing media", { ...good, id: "d", image: "nowhere.png" }],
  ["undecodable media", { ...good, id: "e", image: undefined, video: "junk.mp4" }],
  ["prompt over the limit", { ...good, id: "f", question: "long ".repeat(300) }],
  ["unusable record", { ...good, id: "g", question: "an <|image_pad|> of its own" }],
  ["duplicate id", { ...good, id: "fine" }],
  ["repeated option", { ...good, id: "h", options: ["x", "y", "y"] }],
  ["response without a gold answer", { id: "i", question: "Why?", answer: " ", response: "because" }],
  ["missing media", { ...good, id: "j", video: "nowhere.mp4" }],
  ["media in a field that is not read", { ...good, id: "k", image: undefined, images: ["still.png"] }],
  ["missing answer", { ...good, id: "l", answer: undefined }],
];

const writeLines = (name: string, lines: unknown[]) => {
  writeFileSync(at(name), lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n"));
  return at(name);
};

beforeAll(async () => {
  const sources = [...published.train, cot, ...Object.values(published.eval)];
  for (const source of sources) await renderMedia(await readDataset(source));
  const [still] = await readDataset({ file: writeLines("one.jsonl", [good]), format: "generic" });
  await renderMedia([still as NonNullable<typeof still>]);
  writeFileSync(at("junk.mp4"), "no video");
  writeLines(
    "broken.jsonl",
    broken.map(([, line]) => line),
  );
});

test("a sound data set: nothing to complain of, counts and percentiles as the run will meet them", async () => {
  const report = await check({ ...published, train: [...published.train, cot] });
  expect(report.stops).toEqual([]);
  expect(report.bad).toEqual({ train: 0, eval: 0 });
  expect(report.sets.map(({ set, records, usable }) => [set, records, usable])).toEqual([
    ["train 1", 3, 3],
    ["train 2", 2, 2],
    ["eval L3", 2, 2],
    ["eval long", 3, 3],
  ]);
  const [train, taught, level, long] = report.sets;
  expect(train?.framesPerVideo).toEqual({ 4: 2 }); // 12 frames at 6 a second: 2 s, 4 frames
  expect(train).toMatchObject({ images: 3, responses: 0, responseTokens: null });
  expect(taught?.responses).toBe(2);
  expect(taught?.problems.map(({ kind }) => kind)).toEqual(["duplicate id", "duplicate id"]); // ids of the first file
  expect(level?.counts).toEqual({
    video_source: { Ego4D: 2 },
    domain: { Hobbies: 1, Work: 1 },
    scenario: { baking: 1, "bike mechanic": 1 },
  });
  expect(long?.counts).toEqual({ duration_group: { 15: 1, 60: 1, 3600: 1 } });
  expect(report.mediaFiles).toBe(2 + 3 + 1 + 2 + 3); // each once, whoever names it

  const processor = await Processor.load(qwen2VlFolder(), fixed);
  const loader = new PromptLoader({ processor, config: fixed });
  try {
    const samples = await readDataset(published.train[0] as DataSource, { seed: 42, shuffleOptions: true });
    const lengths = await Promise.all(
      samples.map(async (sample) => (await loader.load(sample))?.inputIds.length as number),
    );
    expect(train?.promptTokens).toEqual(spread(lengths));
  } finally {
    await loader.close();
  }
});

test("one of each fault: all of them are found, each at its line, and none hides another", async () => {
  const report = await check({ train: [{ file: at("broken.jsonl"), format: "generic" }] }, { maxPromptTokens: 200 });
  const [set] = report.sets;
  const expected = broken.flatMap(([kind], i) => (kind === "" ? [] : [[i + 1, kind]]));
  expect(set?.problems.map(({ line, kind }) => [line, kind])).toEqual(expected);
  const tested = new Set(broken.map(([kind]) => kind));
  for (const kind of [...BAD_KINDS, ...NOTE_KINDS])
    if (!/letter/.test(kind)) expect(tested, `${kind} is among the faults`).toContain(kind);
  const messages = new Map(set?.problems.map(({ line, message }) => [line, message]));
  expect(messages.get(2)).toMatch(/^malformed JSON/);
  expect(messages.get(7)).toMatch(/nowhere\.png: no such file/);
  expect(messages.get(8)).toMatch(/junk\.mp4: /);
  expect(messages.get(9)).toMatch(/prompt has \d+ tokens, the limit is 200/);
  expect(messages.get(10)).toMatch(/2 image placeholders for 1 images/);
  expect(messages.get(11)).toContain(`used at ${at("broken.jsonl")}:1 already`);
  expect(report.bad).toEqual({ train: 11, eval: 0 });
  expect(report.stops).toEqual([
    "train 1: 1 record without a gold answer, whatever data.onBadSample says",
    "11 bad records, and data.onBadSample is error",
  ]);
  expect(set).toMatchObject({ records: 11, usable: 5 });
  expect(set?.promptTokens?.max).toBeGreaterThan(200); // what the limit would have to be
});

test("an answer that is empty or null is missing; one of another type is none of the options", async () => {
  const answers = [undefined, null, "", true, "z"];
  const file = writeLines(
    "answers.jsonl",
    answers.flatMap((answer) => [
      { ...good, answer },
      { question: "Why?", answer },
    ]),
  );
  const report = await check({ train: [{ file, format: "generic" }] });
  const kinds = report.sets[0]?.problems
    .filter(({ kind }) => /answer/.test(kind))
    .map(({ line, kind }) => [line, kind]);
  expect(kinds).toEqual([
    ...[1, 2, 3, 4, 5, 6].map((line) => [line, "missing answer"]),
    ...[7, 9].map((line) => [line, "answer not among the options"]),
  ]);
});

test("records whose letters do not fit their options are noted", async () => {
  const record = {
    ...{ sample_id: 1, question: "?", answer: "cut", golden_choice_idx: "B", task_progress_metadata: [] },
    ...{ choice_a: "cut", choice_b: "wash", choice_c: "peel", choice_d: "fry" },
    ...{ video_source: "Ego4D", current_observation_basename: "2.png" },
  };
  const text = "Which?\nA. red\nB. blue\n";
  const taught = { sample_id: 2, prompt: [{ role: "user", content: text }], response: "<answer>C. green</answer>" };
  const report = await check({
    eval: { L1: { file: writeLines("letters.jsonl", [record]), mediaRoot: at("media"), format: "seed-bench-r1" } },
    train: [{ file: writeLines("taught.jsonl", [taught]), format: "seed-bench-r1-sft" }],
  });
  expect(report.sets.flatMap(({ problems }) => problems.map(({ kind }) => kind))).toEqual([
    "gold letter not among the options",
    "answer contradicts the gold letter",
    "missing media",
  ]);
  expect(report.sets[1]?.problems[0]?.message).toBe('answer is "cut", choice B is "wash"');
});

test.each([
  ["error", 100, 0, ["10 bad records, and data.onBadSample is error"]],
  ["skip", 10, 0, []],
  ["skip", 9, 0, ["training would skip 10 records, data.maxBadSamples is 9"]],
  ["skip", 10, 1, ["training would skip 11 records, data.maxBadSamples is 10"]], // the evaluation set's own, met on the way
] as const)("onBadSample %s, maxBadSamples %i: whether the run would stop", async (onBadSample, maxBadSamples, during, stops) => {
  const bad = broken.filter(([kind]) => kind !== "no gold answer").map(([, line]) => line);
  const train = [{ file: writeLines("most.jsonl", bad), format: "generic" as const }];
  const level = {
    file: writeLines("level.jsonl", [good, { ...good, image: "nowhere.png" }]),
    format: "generic" as const,
  };
  const sets = during === 1 ? { train, eval: { L1: level } } : { train };
  const data = { onBadSample, maxBadSamples, maxPromptTokens: 200 };
  const report = await check(sets, data, { evaluatesDuringTraining: during === 1 });
  expect(report.stops).toEqual(stops);
  const text = reportText(report, { ...fixed, ...data });
  if (onBadSample === "skip") expect(text).toContain(stops.length === 0 ? "is enough" : "is not enough");
  expect(text).toContain(stops.length === 0 ? "nothing here would stop a run" : `a run would stop:\n  ${stops[0]}`);
});

test("a file that is not there, and one without a usable record, do not hide the others", async () => {
  const report = await check({
    train: [
      { file: at("gone.jsonl"), format: "generic" },
      { file: writeLines("empty.jsonl", ["oops"]), format: "generic" },
      { file: at("one.jsonl"), format: "generic" },
      { file: writeLines("hollow.jsonl", [{ ...good, id: "k", image: ["1.png", "2.png"] }]), format: "generic" },
    ],
  });
  expect(report.sets[3]?.problems.map(({ line, kind }) => [line, kind])).toEqual([
    [1, "missing media"],
    [1, "missing media"],
  ]);
  expect(report.stops).toEqual([
    `train 1: ${at("gone.jsonl")}: no such file`,
    `train 2: ${at("empty.jsonl")} holds no usable record`,
    `train 4: none of the 1 record of ${at("hollow.jsonl")} is usable`,
    "2 bad records, and data.onBadSample is error",
  ]);
  expect(report.sets[2]).toMatchObject({ records: 1, usable: 1, problems: [] });
});

test("records that share a line are judged one by one", async () => {
  const record = { question: "?", candidates: ["x", "y"], correct_choice: 1, video_path: "../junk.mp4" };
  const list = [record, { ...record, video_path: "../none.mp4" }, { ...record, candidates: [] }];
  writeFileSync(at("one-line.json"), JSON.stringify(list));
  const report = await check({ eval: { long: { file: at("one-line.json"), format: "longvideobench" } } });
  expect(report.bad).toEqual({ train: 0, eval: 3 });
  const [, second] = [...JSON.stringify(list).matchAll(/\{/g)].map(({ index }) => index + 1);
  expect(reportText(report, fixed)).toContain(`one-line.json:1:${second}: ${at("none.mp4")}: no such file`);
});

test("fields may hold any word", async () => {
  const records = ["constructor", "__proto__", "constructor"].map((domain, i) => ({ ...good, id: `w${i}`, domain }));
  const report = await check({ train: [{ file: writeLines("words.jsonl", records), format: "generic" }] });
  expect(Object.entries(report.sets[0]?.counts.domain ?? {})).toEqual([
    ["constructor", 2],
    ["__proto__", 1],
  ]);
});

test("an id of another file is said, and no new name where the record keeps its own", async () => {
  const files = ["ids-1.jsonl", "ids-2.jsonl"].map((name) => writeLines(name, [{ ...good, id: "same" }]));
  const report = await check({ train: files.map((file) => ({ file, format: "generic" })) });
  expect(report.sets[1]?.problems.map(({ message }) => message)).toEqual([`id same was used at ${files[0]}:1 already`]);
});

test("without the model's folder media are still decoded; the missing token counts are said", async () => {
  const report = await check(
    { train: [{ file: at("one.jsonl"), format: "generic" }] },
    {},
    { modelFolder: at("no-model") },
  );
  expect(report.sets[0]).toMatchObject({ images: 1, promptTokens: null });
  expect(report.decodedBytes).toBe(56 * 56 * 3);
  expect(report.stops[0]).toMatch(/^no token was counted: .*no-model/);
});

test("decoding goes through the cache that the run will read, and --limit reads less", async () => {
  const cacheDir = at("cache");
  mkdirSync(cacheDir);
  const done: string[] = [];
  const onProgress: CheckOptions["onProgress"] = ({ part, done: n, total }) => void done.push(`${part} ${n}/${total}`);
  await check(published, { cacheDir, cacheGib: 1 }, { limit: 1, onProgress });
  expect(readdirSync(cacheDir)).toHaveLength(5); // a video and an image twice, a video
  expect(done).toContain("media 5/5");
  expect(done).toContain("prompts 3/3");
  // A run whose media are gone but cached would work; ours looks at the files, so they must be there.
  rmSync(cacheDir, { recursive: true });
});

test("the table shows faults of a kind together, ten of them, and what a percentile is", async () => {
  const many = Array.from({ length: 12 }, (_, i) => ({ ...good, id: `m${i}`, answer: "z" }));
  const report = await check({ train: [{ file: writeLines("many.jsonl", [good, ...many]), format: "generic" }] });
  const text = reportText(report, { ...fixed });
  expect(text).toContain("! answer not among the options: 12");
  expect(text.match(/many\.jsonl:\d+: /g)).toHaveLength(10);
  expect(text).toContain("and 2 more; --json lists them");
  const folderAsVideo = writeLines("folder.jsonl", [{ ...good, image: undefined, video: "media" }]);
  const fault = await check({ train: [{ file: folderAsVideo, format: "generic" }] });
  expect(
    reportText(fault, { ...fixed })
      .split("\n")
      .filter((line) => line.includes(at("media"))),
  ).toHaveLength(1);
  expect(text).toMatch(/prompt tokens +min (\d+) {2}p50 \1 {2}p90 \1 {2}p99 \1 {2}max \1\n/);
  const values = Array.from({ length: 200 }, (_, i) => 200 - i);
  expect(spread(values)).toEqual({ min: 1, p50: 100, p90: 180, p99: 198, max: 200 });
  expect(spread([7])).toEqual({ min: 7, p50: 7, p90: 7, p99: 7, max: 7 });
  expect(spread([])).toBeNull();
});

test.each([
  [16, 252, 252, 648],
  [1, 252, 252, 81],
  [4, 56, 84, 12],
])("%i frames of %i x %i take %i tokens", (frames, height, width, tokens) => {
  expect(mediaTokens({ frames, height, width }, { patchSize: 14, temporalPatch: 2, merge: 2 })).toBe(tokens);
});
