import { execFileSync, spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { renderedCorpus } from "../../src/data/rendered/corpus.ts";
import { COLOURS, HELD_OUT_DOMAINS, SHAPES, TRAINING_GOALS } from "../../src/data/rendered/recipe.ts";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import { SPECIAL_TOKENS, specialId, trainTokenizer, writeTokenizer } from "../../src/data/tokenizer-training.ts";

const UNSEEN = "Ünseen wörds, 漢字 and 1234 don't\n\n  x<answer>(A)</answer> 🙂\tend <|im_end|>";
const trained = trainTokenizer(renderedCorpus());

let folder: string;
let tokenizer: Tokenizer;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "grove-tokenizer-"));
  await writeTokenizer(folder, trained);
  tokenizer = await Tokenizer.load(folder);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const pieces = (text: string) => Array.from(tokenizer.encode(text), (id) => tokenizer.decode([id]));

test("merges follow the counts, ties the alphabet", () => {
  // "ab" occurs 3 times and "bc" twice; then "ab c" is the only pair left in " abc"-free text.
  const { merges } = trainTokenizer(["abc abc ab"].map((text) => text.replaceAll(" ", "\n")));
  expect(merges).toEqual([
    ["a", "b"],
    ["ab", "c"],
  ]);
  expect(trainTokenizer(["ab\ncd"]).merges[0]).toEqual(["a", "b"]);
});

test("every text comes back, seen or not", () => {
  for (const text of [...renderedCorpus().slice(0, 20), UNSEEN])
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
});

test("the words of the data set are one token each, letters the same wherever they stand", () => {
  const goals = HELD_OUT_DOMAINS.flatMap((domain) => domain.scenarios.flatMap((scenario) => [...scenario.goals]));
  for (const word of [...COLOURS, ...SHAPES, ...TRAINING_GOALS, ...goals])
    expect(pieces(` ${word}`)).toEqual([` ${word}`]);
  const response = "<think> next step 3 green B </think><answer> B </answer>";
  expect(pieces(response)).toEqual([
    "<",
    "think",
    ">",
    " next",
    " step",
    " ",
    "3",
    " green",
    " B",
    " </",
    "think",
    "><",
    "answer",
    ">",
    " B",
    " </",
    "answer",
    ">",
  ]);
  expect(tokenizer.encode("\nB. red")[1]).toBe(tokenizer.encode(">B")[1]);
});

test("special tokens have the ids of the layout, the vocabulary is a small multiple of 8", () => {
  for (const token of SPECIAL_TOKENS) {
    expect(Array.from(tokenizer.encode(token))).toEqual([specialId(trained, token)]);
  }
  expect(tokenizer.vocabSize).toBe(trained.vocabSize);
  expect(trained.vocabSize % 8).toBe(0);
  expect(trained.vocabSize).toBeLessThan(700);
  expect(trainTokenizer(["a word"]).vocabSize % 8).toBe(0);
});

test("Python's tokenizers cut every text in the same tokens", async () => {
  const probe = spawnSync("python3", ["-c", "import tokenizers"]);
  if (probe.status !== 0) {
    process.stdout.write("skipped: python3 has no tokenizers package\n");
    return;
  }
  const texts = [...renderedCorpus(), UNSEEN.replace("<|im_end|>", "")];
  await writeFile(path.join(folder, "texts.json"), JSON.stringify(texts));
  const program =
    "import json, sys, tokenizers; t = tokenizers.Tokenizer.from_file(sys.argv[1] + '/tokenizer.json');" +
    "print(json.dumps([t.encode(x, add_special_tokens=False).ids for x in json.load(open(sys.argv[1] + '/texts.json'))]))";
  const ids = JSON.parse(execFileSync("python3", ["-c", program, folder], { encoding: "utf8" }));
  expect(texts.map((text) => Array.from(tokenizer.encode(text)))).toEqual(ids);
});
