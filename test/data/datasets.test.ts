import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { type DataSource, type ReadOptions, readDataset } from "../../src/data/datasets.ts";
import type { ContentPart } from "../../src/types.ts";
import { temporaryFolder } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
let files = 0;

/** Writes lines (objects as JSON, strings as they are) and reads them. */
function read(format: DataSource["format"], lines: unknown[], options?: ReadOptions, limit?: number) {
  const file = join(folder.path, `${files++}.jsonl`);
  writeFileSync(file, lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n"));
  return readDataset({ file, format, mediaRoot: "/data", limit }, options);
}

const parts = (sample: { messages: { content: unknown }[] } | undefined) =>
  sample!.messages[0]!.content as ContentPart[];
const textOf = (sample: Parameters<typeof parts>[0]) => (parts(sample).at(-1) as { text: string }).text;

const common = {
  task_goal: "Cut and peel the onion",
  question: "What action should I take next in order to cut and peel the onion?",
  task_start_frame: 10,
  current_observation_frame: 200,
  task_progress_metadata: [{ narration_text: "take knife", start_frame: 10, stop_frame: 40 }],
  video_id: "P07_113",
  video_source: "EpicKitchens",
  video_basename: "39.mp4",
  current_observation_basename: "39.png",
};
const negatives = ["cut onion", "peel onion", "wash onion", "put knife", "take plate", "open tap"];
const training = { ...common, sample_id: 39, answer: "grab onion", negative_answers: negatives };
const validation = {
  ...common,
  sample_id: 115,
  choice_a: "put box",
  choice_b: "take bag",
  choice_c: "open cupboard",
  choice_d: "put bag",
  golden_choice_idx: "C",
  answer: "open cupboard",
};
const instruction =
  " Output the thinking process in <think> </think> and final answer in <answer> </answer> tags, i.e., <think> reasoning process here </think><answer> answer here </answer>. ";

describe("seed-bench-r1, validation", () => {
  test("the seed's prompt, options in file order, media under the root", async () => {
    const [sample] = await read("seed-bench-r1", [validation]);
    expect(sample).toMatchObject({ id: "115", solution: "<answer>C.</answer>", source: { line: 1 } });
    expect(parts(sample)).toEqual([
      { type: "video", video: "/data/videos/EpicKitchens/39.mp4" },
      { type: "image", image: "/data/images/EpicKitchens/39.png" },
      {
        type: "text",
        text: `${common.question}\nA. put box\nB. take bag\nC. open cupboard\nD. put bag\n${instruction}`,
      },
    ]);
    expect(sample?.fields).toMatchObject({ task_goal: common.task_goal, gold: "C" });
  });

  test("shuffled on request: the gold letter follows its option", async () => {
    const records = Array.from({ length: 40 }, (_, i) => ({ ...validation, sample_id: `${i}` }));
    const samples = await read("seed-bench-r1", records, { shuffleOptions: true, seed: 1 });
    const letters = new Set<string>();
    for (const sample of samples) {
      const letter = /<answer>(.)\./.exec(sample.solution)![1]!;
      letters.add(letter);
      expect(textOf(sample)).toContain(`\n${letter}. open cupboard\n`);
    }
    expect([...letters].sort()).toEqual(["A", "B", "C", "D"]);
  });

  test("L3: a string id, domain and scenario are kept", async () => {
    const l3 = { ...validation, sample_id: "ca6e9ec9_2", domain: "Hobbies", scenario: "baking" };
    const [sample] = await read("seed-bench-r1", [l3]);
    expect(sample).toMatchObject({ id: "ca6e9ec9_2", fields: { domain: "Hobbies", scenario: "baking" } });
  });

  test("without progress there is an image only", async () => {
    for (const progress of [[], null, undefined]) {
      const record = { ...validation, task_progress_metadata: progress, video_basename: null };
      const [sample] = await read("seed-bench-r1", [record]);
      expect(parts(sample).map((part) => part.type)).toEqual(["image", "text"]);
    }
  });
});

describe("seed-bench-r1, training", () => {
  test("four options: the answer and three negatives, the gold letter is the answer's", async () => {
    const [sample] = await read("seed-bench-r1", [training], { seed: 5 });
    const options = sample?.fields.options as string[];
    expect(options.length).toBe(4);
    expect(new Set(options).size).toBe(4);
    for (const option of options) expect([training.answer, ...negatives]).toContain(option);
    const gold = "ABCD"[options.indexOf(training.answer)];
    expect(sample?.solution).toBe(`<answer>${gold}.</answer>`);
  });

  test("draws depend on seed and id alone, not on the line", async () => {
    const records = Array.from({ length: 60 }, (_, i) => ({ ...training, sample_id: i }));
    const [once, backwards, otherSeed] = await Promise.all([
      read("seed-bench-r1", records, { seed: 5 }),
      read("seed-bench-r1", [...records].reverse(), { seed: 5 }),
      read("seed-bench-r1", records, { seed: 6 }),
    ]);
    const texts = (samples: typeof once) => new Map(samples!.map((sample) => [sample.id, textOf(sample)]));
    expect(texts(backwards!)).toEqual(new Map([...texts(once!)].reverse()));
    expect([...texts(otherSeed!)]).not.toEqual([...texts(once!)]);
    const letters = once!.map((sample) => sample.solution);
    for (const letter of "ABCD") {
      const count = letters.filter((solution) => solution.includes(`${letter}.`)).length;
      expect(count, `gold ${letter}`).toBeGreaterThan(5); // 15 expected, standard deviation 3.4
    }
  });
});

test("seed-bench-r1-sft: prompt and response, null columns dropped, media under the root", async () => {
  const record = {
    sample_id: 39,
    prompt: [
      {
        role: "user",
        content: [
          { type: "video", video: "videos/EpicKitchens/39.mp4", image: null, text: null },
          { type: "image", image: "images/EpicKitchens/39.png", video: null, text: null },
          { type: "text", text: "What next?", image: null },
        ],
      },
    ],
    response: "<think>First.\nThen.</think><answer>B. grab</answer>",
  };
  const [sample] = await read("seed-bench-r1-sft", [record]);
  expect(parts(sample)).toEqual([
    { type: "video", video: "/data/videos/EpicKitchens/39.mp4" },
    { type: "image", image: "/data/images/EpicKitchens/39.png" },
    { type: "text", text: "What next?" },
  ]);
  expect(sample).toMatchObject({ response: record.response, solution: "<answer>B. grab</answer>" });
});

test("chat: the last assistant turn is the response", async () => {
  const messages = [
    { role: "system", content: "Be brief." },
    {
      role: "user",
      content: [
        { type: "image", image: "/elsewhere/i.png" },
        { type: "text", text: "Hi" },
      ],
    },
  ];
  const [asked, answered] = await read("chat", [
    { messages },
    { messages: [...messages, { role: "assistant", content: [{ type: "text", text: "Hello" }] }] },
  ]);
  expect(asked?.response).toBeUndefined();
  expect(answered).toMatchObject({ id: "2", response: "Hello", solution: "" });
  expect(answered?.messages).toEqual(asked?.messages);
  await expect(read("chat", [{ messages: messages.slice(0, 1) }])).rejects.toThrow(/end with the user's turn/);

  const pictured = { role: "assistant", content: [{ type: "image", image: "i.png" }] };
  await expect(read("chat", [{ messages: [{ role: "user", content: "?" }, pictured] }])).rejects.toThrow(
    /:1 \(sample 1\): the last turn, which is the response, must be text/,
  );
});

describe("generic", () => {
  const record = { id: "g", video: "v.mp4", image: ["a.png", "/b.png"], question: "Which?", options: ["x", "y", "z"] };
  test.each([
    { answer: "y", solution: "<answer>B.</answer>" },
    { answer: "C", solution: "<answer>C.</answer>" },
    { answer: "A.", solution: "<answer>A.</answer>" },
    { answer: 2, solution: "<answer>C.</answer>" },
  ])("answer $answer", async ({ answer, solution }) => {
    const [sample] = await read("generic", [{ ...record, answer, domain: "toys" }]);
    expect(sample).toMatchObject({ id: "g", solution, fields: { domain: "toys" } });
    expect(parts(sample).map((part) => Object.values(part)[1])).toEqual([
      "/data/v.mp4",
      "/data/a.png",
      "/b.png",
      `Which?\nA. x\nB. y\nC. z\n${instruction}`,
    ]);
  });

  test("an option's own text wins over a letter", async () => {
    const [sample] = await read("generic", [{ ...record, options: ["B", "A"], answer: "A" }]);
    expect(sample?.solution).toBe("<answer>B.</answer>");
  });

  test("without options: text only, an answer of its own, and a template of the caller's", async () => {
    const [sample] = await read("generic", [{ question: "2 + 2?", answer: 4, response: "four" }], {
      template: (question, options) => `${question}[${options}]`,
    });
    expect(sample).toMatchObject({ id: "1", solution: "<answer>4</answer>", response: "four" });
    expect(textOf(sample)).toBe("2 + 2?[]");
  });
});

describe("bad records", () => {
  test.each([
    { what: "malformed JSON", format: "generic", line: '{"question": ', message: /\.jsonl:2: malformed JSON/ },
    { what: "a list", format: "generic", line: "[1]", message: /\.jsonl:2: expected a JSON object/ },
    {
      what: "no question",
      format: "generic",
      line: { answer: "A" },
      message: /:2 \(sample 2\): field "question" must be a non-empty string, it is missing/,
    },
    {
      what: "an answer outside",
      format: "generic",
      line: { question: "?", options: ["x", "y"], answer: "C" },
      message: /:2.*field "answer" must be an option, a letter A to B or a number below 2, got "C"/,
    },
    { what: "no answer", format: "generic", line: { question: "?", options: ["x", "y"] }, message: /field "answer"/ },
    {
      what: "options that are no list",
      format: "generic",
      line: { question: "?", options: "xy", answer: "x" },
      message: /field "options" must be a list of strings, got "xy"/,
    },
    {
      what: "no media name",
      format: "seed-bench-r1",
      line: { ...validation, video_basename: undefined },
      message: /:2 \(sample 115\): field "video_basename"/,
    },
    {
      what: "no choice",
      format: "seed-bench-r1",
      line: { ...validation, choice_d: undefined },
      message: /field "choice_d"/,
    },
    {
      what: "a strange gold letter",
      format: "seed-bench-r1",
      line: { ...validation, golden_choice_idx: "E" },
      message: /golden_choice_idx" must be one of A, B, C, D, got "E"/,
    },
    {
      what: "no negatives",
      format: "seed-bench-r1",
      line: { ...training, negative_answers: [] },
      message: /field "negative_answers"/,
    },
    {
      what: "no response",
      format: "seed-bench-r1-sft",
      line: { prompt: [{ role: "user", content: "?" }] },
      message: /field "response"/,
    },
    {
      what: "a strange role",
      format: "seed-bench-r1-sft",
      line: { prompt: [{ role: "robot", content: "?" }], response: "!" },
      message: /prompt\[0\]\.role must be one of/,
    },
    {
      what: "a part without content",
      format: "seed-bench-r1-sft",
      line: { prompt: [{ role: "user", content: [{ type: "video" }] }], response: "!" },
      message: /prompt\[0\]\.content\[0\] must be a text, image or video part/,
    },
  ] as const)("$what stops the run, naming file and line", async ({ format, line, message }) => {
    const failure = read(format, ["", line]);
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toMatchObject({ name: "DataError" });
  });

  test("skipped: counted, logged with the line, up to the limit", async () => {
    const lines = [
      validation,
      "oops",
      { ...validation, choice_a: 5, sample_id: 2 },
      { ...validation, choice_b: null, sample_id: 3 },
    ];
    const warnings: { fields: Record<string, unknown>; message: string }[] = [];
    const log = { warn: (fields: Record<string, unknown>, message: string) => void warnings.push({ fields, message }) };
    const samples = await read("seed-bench-r1", lines, { onBadSample: "skip", maxBadSamples: 2, log });
    expect(samples.map((sample) => sample.id)).toEqual(["115", "2"]);
    expect(warnings.map(({ fields }) => fields.line)).toEqual([2, 4]);
    expect(warnings[1]?.message).toMatch(/choice_b/);
    await expect(read("seed-bench-r1", lines, { onBadSample: "skip", maxBadSamples: 1, log })).rejects.toThrow(
      /:4: 2 samples were unusable, data\.maxBadSamples is 1/,
    );
  });

  test("a missing file and an empty data set", async () => {
    await expect(readDataset({ file: "/nowhere.jsonl", format: "generic" })).rejects.toThrow(
      /\/nowhere\.jsonl: no such file/,
    );
    await expect(read("generic", ["", ""])).rejects.toThrow(/holds no usable record/);
  });
});

test("limit, repeated ids, a byte order mark and Windows line ends", async () => {
  const line = (answer: string) => JSON.stringify({ id: "same", question: "?", answer });
  const samples = await read("generic", [`\uFEFF${line("1")}\r`, `${line("2")}\r`, line("3")], {}, 2);
  expect(samples.map(({ id, solution }) => [id, solution])).toEqual([
    ["same", "<answer>1</answer>"],
    ["same#2", "<answer>2</answer>"],
  ]);
});

test("a record is what stands between line ends, whatever its strings hold and wherever the file is read in pieces", async () => {
  const piece = 2 ** 16; // of a read stream
  const record = (answer: string) => JSON.stringify({ question: "a\u2028b\u2029c\u0085d", answer });
  const empty = Buffer.byteLength(record(""));
  for (const length of [piece - 1, piece, 2 * piece - 1, 3 * piece]) {
    const long = record("é".repeat((length - empty) >> 1) + ((length - empty) % 2 === 0 ? "" : "e"));
    expect(Buffer.byteLength(long)).toBe(length);
    const file = join(folder.path, `${files++}.jsonl`);
    for (const end of ["\n", "\r\n", "\r"]) {
      writeFileSync(file, `${long}${end}${end}${record("2")}${end}`);
      const samples = await readDataset({ file, format: "generic" });
      expect(samples.map(({ source }) => source.line)).toEqual([1, 3]);
      expect(samples.map(({ fields }) => fields)).toEqual([JSON.parse(long), JSON.parse(record("2"))]);
    }
    writeFileSync(file, `${long}\r${record("2")}`); // nothing to cut at in the last piece
    expect((await readDataset({ file, format: "generic" })).map(({ source }) => source.line)).toEqual([1, 2]);
  }
});

test("a repeated id never takes the name of another record", async () => {
  const line = (id: unknown) => JSON.stringify({ id, question: "?", answer: "x" });
  const ids = async (...own: unknown[]) => (await read("generic", own.map(line))).map(({ id }) => id);
  expect(await ids("a", "a#2", "a", "a")).toEqual(["a", "a#2", "a#3", "a#4"]);
  expect(await ids("a", "a", "a#2")).toEqual(["a", "a#2", "a#2#2"]);
  expect(await ids(0, "", "0", 2)).toEqual(["0", "2", "0#2", "2#2"]); // without an id: its line
});

test("media paths are relative to the file's folder by default", async () => {
  const file = join(folder.path, "default-root.jsonl");
  writeFileSync(file, JSON.stringify({ question: "?", answer: "x", image: "i.png" }));
  const [sample] = await readDataset({ file, format: "generic" });
  expect(parts(sample)[0]).toEqual({ type: "image", image: join(folder.path, "i.png") });
});

test("standard input is read also where it is a socket, as between two Node processes", () => {
  const jsonl = new URL("../../src/data/jsonl.ts", import.meta.url).href;
  const program = `import { readJsonLines, STANDARD_INPUT } from "${jsonl}";
    for await (const { line, value } of readJsonLines(STANDARD_INPUT)) console.log(line, value.a);`;
  const args = ["--import", "tsx", "--input-type=module", "-e", program];
  const { stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8", input: '{"a": 1}\n\n{"a": 2}\n' });
  expect([stdout, stderr]).toEqual(["1 1\n3 2\n", ""]);
});
