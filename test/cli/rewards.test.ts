/** Reward functions from the command line: `score --rewards`, and what --dry-run says of those that cannot be loaded. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import { renderedCorpus } from "../../src/data/rendered/corpus.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { captureOutput } from "./capture.ts";

const PYTHON = fileURLToPath(new URL("../reward/python/trl_style.py", import.meta.url));
const folder = mkdtempSync(path.join(tmpdir(), "grove-cli-rewards-"));
const at = (name: string) => path.join(folder, name);
afterAll(() => rmSync(folder, { recursive: true }));

beforeAll(async () => {
  const spec = { hiddenSize: 32, intermediateSize: 64, layers: 2, heads: 2, kvHeads: 1 };
  await writeModelFolder(at("model"), {
    spec: { ...spec, visionWidth: 32, visionLayers: 1, visionHeads: 2 },
    corpus: renderedCorpus(),
  });
  writeFileSync(
    at("mine.mjs"),
    "console.log('loading'); export default ({ lengths, kind }) => kind.map((k, i) => (k === 'odd' ? 'no' : lengths[i]));",
  );
});

const { out, err } = captureOutput();

test("score --rewards: built-in, module and Python functions of the last turns, without weights", async () => {
  const chat = (answer: string, more: object) => {
    const messages = [
      { role: "user", content: "What is next?" },
      { role: "assistant", content: answer },
    ];
    return JSON.stringify({ messages, solution: "<answer>B.</answer>", ...more });
  };
  const right = "<think>a</think><answer>B</answer>";
  writeFileSync(
    at("chats.jsonl"),
    `${chat(right, { id: "x", kind: "even" })}\n${chat("no", { id: "y", kind: "odd" })}\n`,
  );
  const rewards = [
    { name: "accuracy" },
    { name: "mine", path: at("mine.mjs"), weight: 0.5, onError: "skip" },
    { name: "seed", python: `${PYTHON}:accuracy_reward`, weight: 2 },
  ];
  const flags = ["--set", `model.path=${at("model")}`, "--set", `rewards=${JSON.stringify(rewards)}`];
  const files = ["--input", at("chats.jsonl"), "--output", at("scores.jsonl")];
  expect(await main(["score", "--rewards", ...flags, ...files])).toBe(0);
  await vi.waitFor(() => expect(err.text).toMatch(/"reward":"mine","msg":"loading"/));
  expect(out.text).toBe(""); // what functions print stays out of what the command writes
  const lines = readFileSync(at("scores.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const tokens = lines[0].reward_breakdown.mine;
  expect(tokens).toBeGreaterThan(5);
  expect(lines).toEqual([
    { id: "x", reward: 3 + tokens / 2, reward_breakdown: { accuracy: 1, mine: tokens, seed: 1 } },
    { id: "y", reward: 0, reward_breakdown: { accuracy: 0, mine: null, seed: 0 }, errors: ["mine"] },
  ]);
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  expect(sharedObjects.filter((file) => /torch/.test(file))).toEqual([]);
});

test("score --rewards does not take a turn for its own gold answer", async () => {
  const messages = [
    { role: "user", content: "What is next?" },
    { role: "assistant", content: "<answer>B</answer>" },
  ];
  writeFileSync(at("no-gold.jsonl"), `${JSON.stringify({ id: "x", messages })}\n`);
  const score = (rewards: object[]) => {
    const flags = ["--set", `model.path=${at("model")}`, "--set", `rewards=${JSON.stringify(rewards)}`];
    return main(["score", "--rewards", ...flags, "--input", at("no-gold.jsonl")]);
  };
  expect(await score([{ name: "accuracy" }])).toBe(1);
  expect(err.text).toMatch(/no-gold\.jsonl:1 \(sample x\): has no gold answer, so accuracy cannot judge it/);
  expect(await score([{ name: "format" }])).toBe(0); // looks at no gold answer
  expect(JSON.parse(out.text)).toEqual({ id: "x", reward: 0, reward_breakdown: { format: 0 } });
});

test.each([
  [{ path: "/nowhere.ts" }, /error \[CONFIG\] reward "mine": there is no module \/nowhere.ts/],
  [{ python: "/nowhere.py:f" }, /error \[CONFIG\] reward "mine": there is no file \/nowhere.py/],
  [{ python: `${PYTHON}:acuracy` }, /error \[REWARD\] reward "mine": .*has no function acuracy/],
  [
    { python: `${PYTHON}:judge`, interpreter: "nopython3" },
    /error \[REWARD\] .*the program nopython3 cannot be started/,
  ],
])("--dry-run prints the plan, then what cannot be loaded: %j", async (reward, message) => {
  const rewards = `rewards=${JSON.stringify([{ name: "mine", ...reward }])}`;
  expect(await main(["grpo", "--dry-run", "--set", "model.path=m", "--set", rewards])).toBe(1);
  expect(out.text).toMatch(/^# plan of grpo[\s\S]*^rewards:/m);
  expect(err.text).toMatch(message);
});

test("--dry-run of functions that load", async () => {
  const rewards = [
    { name: "mine", path: at("mine.mjs") },
    { name: "theirs", python: `${PYTHON}:judge` },
  ];
  expect(
    await main(["grpo", "--dry-run", "--set", "model.path=m", "--set", `rewards=${JSON.stringify(rewards)}`]),
  ).toBe(0);
});
