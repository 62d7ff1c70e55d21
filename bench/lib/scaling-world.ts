/** A model folder, questions and a config on which the trainer itself can be timed anywhere: random weights, pictures of noise, no data set. */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import sharp from "sharp";
import { stringify } from "yaml";
import { seedPrompt } from "../../src/data/question.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import type { Qwen2VLConfig } from "../../src/model/qwen2vl/config.ts";

export interface WorldSize {
  questions: number; // records
  /** Pictures of a question: nine have the patches of the seed's 16 frames and image. */
  pictures: number;
  /** Words of a question, a token each. */
  words: number;
}

/** Pictures that questions choose theirs from. */
const POOL = 24;
const SIDE = 252; // 81 tokens
const WORDS = ["what", "happens", "next", "here", "and", "why", "does", "the", "hand", "move", "now"];
const REWARD = `/** A reward that a random policy earns in varying amounts. */
export default ({ completions }) => completions.map((text) => text.split("e").length / (text.length + 1));
`;

/** Writes model, pictures, questions and reward into `folder`. */
export async function writeWorld(folder: string, shape: Qwen2VLConfig, size: WorldSize): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const words = Array.from({ length: size.words }, (_, i) => WORDS[i % WORDS.length]).join(" ");
  await writeModel(path.join(folder, "model"), shape, seedPrompt(words, ""));
  let state = 12345;
  for (let i = 0; i < POOL; i++) {
    const pixels = Uint8Array.from({ length: SIDE * SIDE * 3 }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state >>> 24;
    });
    const raw = { width: SIDE, height: SIDE, channels: 3 } as const;
    await sharp(pixels, { raw })
      .png({ compressionLevel: 0 })
      .toFile(path.join(folder, `${i}.png`));
  }
  const records = Array.from({ length: size.questions }, (_, i) => ({
    id: `q${i}`,
    image: Array.from({ length: size.pictures }, (_, p) => `${(i + 5 * p) % POOL}.png`),
    question: words,
    answer: "next",
  }));
  writeFileSync(path.join(folder, "questions.jsonl"), records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  writeFileSync(path.join(folder, "reward.mjs"), REWARD);
}

async function writeModel(folder: string, { text, vision, tieWordEmbeddings }: Qwen2VLConfig, corpus: string) {
  const spec = {
    ...{ hiddenSize: text.hiddenSize, intermediateSize: text.intermediateSize, layers: text.numLayers },
    ...{ heads: text.numHeads, kvHeads: text.numKvHeads, tieWordEmbeddings },
    ...{ visionWidth: vision.embedDim, visionLayers: vision.depth, visionHeads: vision.numHeads },
  };
  await writeModelFolder(folder, { spec, corpus: [corpus] });
  const file = path.join(folder, "config.json");
  const config = { ...JSON.parse(readFileSync(file, "utf8")), vocab_size: text.vocabSize };
  writeFileSync(file, JSON.stringify(config, null, 2));
}

export interface RunSize {
  gpus: number;
  questions: number; // of each GPU in a step
  group: number;
  newTokens: number;
  steps: number;
  /** Steps, counted from 1, that leave a trace. */
  traced: number[];
  device: "cpu" | "cuda";
}

/** Writes the config of a run on so many GPUs; returns its file and its run folder. Other knobs: --set. */
export function writeConfig(folder: string, size: RunSize): { file: string; runDir: string } {
  const { gpus, questions, group, newTokens, steps, traced, device } = size;
  const runDir = path.join(folder, `run-${gpus}`);
  const config = {
    device,
    dtype: device === "cpu" ? "float32" : "bfloat16",
    threads: device === "cpu" ? 1 : 0,
    runDir,
    model: { path: path.join(folder, "model"), init: "random" },
    data: {
      train: [{ file: path.join(folder, "questions.jsonl"), format: "generic" }],
      ...{ resizedHeight: SIDE, resizedWidth: SIDE, workers: 8, cacheGib: 0 },
    },
    rollout: { groupSize: group, maxNewTokens: newTokens, ignoreEos: true },
    rewards: [{ name: "noise", path: path.join(folder, "reward.mjs") }],
    trainer: {
      ...{ steps, questionsPerStep: gpus * questions, klCoef: 0.04, tokensPerPack: 3072, traceSteps: traced },
      ...{ saveEvery: 0, saveFinal: false, logCompletions: 1 },
    },
    optimizer: { moments: "bfloat16" },
  };
  const file = path.join(folder, `run-${gpus}.yaml`);
  writeFileSync(file, stringify(config));
  return { file, runDir };
}
