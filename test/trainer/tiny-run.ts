/** A whole run in small: a random Qwen2-VL, two dozen questions about coloured pictures, and a config that fits them. */

import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";

const COLORS = { red: "#e02020", green: "#20a040", blue: "#2040e0", white: "#f0f0f0" };

export const SHARE_OF_E = fileURLToPath(new URL("rewards/share-of-e.mjs", import.meta.url));

export interface TinyWorld {
  folder: string;
  model: string; // Hugging Face folder without weights
  questions: string; // generic JSONL with responses
}

/** Writes model folder, pictures and questions into a temporary folder that the caller removes. */
export async function makeTinyWorld(questions = 24): Promise<TinyWorld> {
  const folder = mkdtempSync(path.join(tmpdir(), "tiny-run-"));
  const model = path.join(folder, "model");
  const names = Object.keys(COLORS);
  for (const [name, background] of Object.entries(COLORS)) {
    const file = path.join(folder, `${name}.png`);
    await sharp({ create: { width: 56, height: 56, channels: 3, background } })
      .png()
      .toFile(file);
  }
  const records = Array.from({ length: questions }, (_, i) => {
    const answer = names[i % names.length] as string;
    const response = `<think> the picture is ${answer} </think><answer>${"ABCD"[names.indexOf(answer)]}</answer>`;
    const domain = i % 3 === 0 ? "warm" : "cold";
    return { id: `q${i}`, image: `${answer}.png`, question: "Which colour?", options: names, answer, response, domain };
  });
  const file = path.join(folder, "questions.jsonl");
  writeFileSync(file, records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  const corpus = records.map((record) => `${record.question} ${record.response} ${names.join(" ")}`);
  await writeModelFolder(model, {
    spec: {
      hiddenSize: 32,
      intermediateSize: 64,
      layers: 2,
      heads: 2,
      kvHeads: 1,
      visionWidth: 16,
      visionLayers: 1,
      visionHeads: 2,
    },
    corpus,
  });
  return { folder, model, questions: file };
}

/** The config of a run in `<world>/<name>`; `more` is laid over it section by section. */
export function tinyConfig(world: TinyWorld, name: string, more: { [section: string]: object } = {}): Config {
  const runDir = path.join(world.folder, name);
  mkdirSync(runDir, { recursive: true });
  const base: { [section: string]: object } = {
    model: { path: world.model, init: "random" },
    data: {
      train: [{ file: world.questions, format: "generic" }],
      eval: { easy: { file: world.questions, format: "generic" } },
      workers: 1,
      cacheGib: 0,
    },
    rollout: { groupSize: 4, maxNewTokens: 12 },
    trainer: { questionsPerStep: 3, steps: 4, saveEvery: 2, tokensPerPack: 600 },
    optimizer: { learningRate: 1e-3 },
    eval: { maxNewTokens: 8, batchSize: 8 },
  };
  const sections = Object.fromEntries(
    [...new Set([...Object.keys(base), ...Object.keys(more)])].map((key) => [
      key,
      Array.isArray(more[key]) ? more[key] : { ...base[key], ...more[key] },
    ]),
  );
  return configSchema.parse({
    rewards: [{ name: "e", path: SHARE_OF_E }],
    ...sections,
    seed: 7,
    dtype: "float32",
    threads: 1,
    runDir,
  });
}

/** A line of metrics.jsonl without what depends on the clock. */
export function deterministic(line: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(line).filter(([name]) => !/^time\/|_per_s$|^memory\//.test(name)));
}
