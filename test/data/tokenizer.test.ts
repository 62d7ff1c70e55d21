import { cpSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Tokenizer } from "../../src/data/tokenizer.ts";
import { golden, qwen2VlFolder, temporaryFolder } from "./helpers.ts";

let tokenizer: Tokenizer;
const folder = temporaryFolder();
beforeAll(async () => {
  tokenizer = await Tokenizer.load(qwen2VlFolder());
});
afterAll(folder.remove);

test("knows Qwen2-VL's ids", () => {
  expect(tokenizer.vocabSize).toBe(151657);
  expect(tokenizer.eosTokenIds).toEqual([151645, 151643]);
  expect(tokenizer.padTokenId).toBe(151643);
  expect(
    ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"].map((t) => tokenizer.idOf(t)),
  ).toEqual([151652, 151653, 151655, 151656]);
  expect(() => tokenizer.idOf("<think>")).toThrow(/no token <think>/);
});

test("ids are those of Hugging Face's own tokenizers", () => {
  for (const { text, ids } of golden.tokens) expect(Array.from(tokenizer.encode(text)), text).toEqual(ids);
});

test("encodes and decodes without adding or losing anything", () => {
  const texts = [
    "Hello, world",
    " leading and trailing ",
    "B. <think>\n\n</think> ünïcödé 漢字 👩‍👩‍👧",
    "a\t b\r\n",
    "don't , stop .",
  ];
  for (const text of texts) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  expect(Array.from(tokenizer.encode("Hello world"))).toEqual([9707, 1879]); // Qwen2's published ids
  expect(tokenizer.encode("").length).toBe(0);
  expect(tokenizer.decode([])).toBe("");
});

test("special tokens in a text are one id, and can be left out when decoding", () => {
  const ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>");
  expect([ids[0], ids.at(-1)]).toEqual([151644, 151645]);
  expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe("user\nhi");
});

test("a chat follows Qwen2-VL's own template", () => {
  const content = [
    { type: "video" as const, video: "v.mp4" },
    { type: "image" as const, image: "i.png" },
    { type: "text" as const, text: "What next? " },
  ];
  expect(tokenizer.chatText([{ role: "user", content }], { addGenerationPrompt: true })).toBe(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" +
      "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>What next? <|im_end|>\n" +
      "<|im_start|>assistant\n",
  );
  const chat = [
    { role: "system" as const, content: "Be brief." },
    { role: "user" as const, content: "Hi" },
    { role: "assistant" as const, content: "Hello" },
  ];
  expect(tokenizer.chatText(chat, { addGenerationPrompt: false })).toBe(
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
  );
});

test("the folder's own template and stop ids win", async () => {
  const own = join(folder.path, "own");
  cpSync(qwen2VlFolder(), own, { recursive: true });
  writeFileSync(join(own, "chat_template.json"), JSON.stringify({ chat_template: "{{ messages[0]['content'] }}!" }));
  rmSync(join(own, "generation_config.json"));
  const other = await Tokenizer.load(own);
  expect(other.chatText([{ role: "user", content: "Hi" }], { addGenerationPrompt: true })).toBe("Hi!");
  expect(other.eosTokenIds).toEqual([151645]);
  writeFileSync(join(own, "chat_template.jinja"), "{{ messages | length }} turns");
  expect((await Tokenizer.load(own)).chatText([{ role: "user", content: "Hi" }], { addGenerationPrompt: true })).toBe(
    "1 turns",
  );
});

test("a folder without a tokenizer, or with a broken one, is named", async () => {
  await expect(Tokenizer.load(folder.path)).rejects.toThrow(/has no tokenizer\.json/);
  writeFileSync(join(folder.path, "tokenizer.json"), "{");
  writeFileSync(join(folder.path, "tokenizer_config.json"), "{}");
  await expect(Tokenizer.load(folder.path)).rejects.toThrow(folder.path);
});
