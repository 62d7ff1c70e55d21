/**
 * Accuracy of a policy on sets of questions: greedy (as the seed in effect decodes) or sampled, scored by the same reward code as training.
 * Answers go to a JSONL file in the seed's fields, a line per question as soon as its batch is done; an evaluation that was stopped goes
 * on behind the questions that have a line.
 */

import { closeSync, existsSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import { readDataset } from "../data/datasets.ts";
import type { PromptLoader } from "../data/loader.ts";
import { CheckpointError } from "../errors.ts";
import { checkGoldAnswers } from "../reward/gold.ts";
import { createRewards, type Rewards } from "../reward/rewards.ts";
import type { Sampler } from "../rollout/sampler.ts";
import type { ChatMessage, Metrics, Prompt, Sample } from "../types.ts";
import type { EvalResults, LevelResult, Tally } from "./report.ts";

/** A line of a result file; the seed's fields. */
export interface EvalRecord {
  sample_id: string;
  prompt: ChatMessage[];
  problem: string; // text of the question
  solution: string;
  response: string;
  reward: number;
}

/** Fields of a record that split a level into parts. */
const PART_FIELDS = ["domain", "scenario"] as const;

export interface EvalParts {
  config: Config;
  loader: PromptLoader;
  sampler: Sampler;
}

export interface EvalOptions {
  /** Ask only the first so many questions of each level. */
  limit?: number;
  /** File of a level's answers; none are written without. */
  fileOf?: (level: string) => string;
  onProgress?: (progress: { level: string; done: number; total: number }) => void;
  /** Asked between batches; true ends the evaluation. */
  stopped?: () => boolean;
}

/** Evaluates every level of config.data.eval. Returns null when `stopped` said so before the last question. */
export async function evaluateLevels(
  levels: Record<string, readonly Sample[]>,
  parts: EvalParts,
  options: EvalOptions = {},
): Promise<EvalResults | null> {
  const rewards = createRewards([{ name: "accuracy", weight: 1, timeoutS: 60 }]);
  try {
    const results: EvalResults = {};
    for (const [level, samples] of Object.entries(levels)) {
      const result = await evaluateLevel(level, samples.slice(0, options.limit), parts, rewards, options);
      if (result === null) return null;
      results[level] = result;
    }
    return results;
  } finally {
    await rewards.close();
  }
}

/**
 * The questions of config.data.eval by level, options in the order of the file.
 * @throws DataError for a record that cannot be read or has no gold answer
 */
export async function readLevels(config: Config): Promise<Record<string, Sample[]>> {
  const { onBadSample, maxBadSamples } = config.data;
  const levels: Record<string, Sample[]> = {};
  for (const [level, source] of Object.entries(config.data.eval)) {
    const samples = await readDataset(source, { onBadSample, maxBadSamples });
    checkGoldAnswers(samples, level);
    levels[level] = samples;
  }
  return levels;
}

/** Results as metrics: `eval/<level>/accuracy` and `eval/<level>/n`. */
export function evalMetrics(results: EvalResults): Metrics {
  const metrics: Metrics = {};
  for (const [level, { correct, n }] of Object.entries(results)) {
    if (n > 0) metrics[`eval/${level}/accuracy`] = correct / n;
    metrics[`eval/${level}/n`] = n;
  }
  return metrics;
}

async function evaluateLevel(
  level: string,
  samples: readonly Sample[],
  parts: EvalParts,
  rewards: Rewards,
  options: EvalOptions,
): Promise<LevelResult | null> {
  const { batchSize } = parts.config.eval;
  const file = options.fileOf?.(level);
  const answered = file === undefined ? new Map<string, EvalRecord>() : readAnswers(file);
  const open = samples.filter((sample) => !answered.has(sample.id));
  const out = file === undefined ? null : openSync(file, "a");
  let skipped = 0;
  try {
    for (let start = 0; start < open.length; start += batchSize) {
      if (options.stopped?.()) return null;
      const batch = open.slice(start, start + batchSize);
      parts.loader.prefetch(open.slice(start, start + 2 * batchSize));
      const prompts: Prompt[] = [];
      for (const sample of batch) {
        const prompt = await parts.loader.load(sample);
        if (prompt === null) skipped++;
        else prompts.push(prompt);
      }
      for (const record of await answer(prompts, parts, rewards)) {
        answered.set(record.sample_id, record);
        if (out !== null) writeSync(out, `${JSON.stringify(record)}\n`);
      }
      const done = samples.length - open.length + Math.min(start + batchSize, open.length);
      options.onProgress?.({ level, done, total: samples.length });
      await nextTurn();
    }
  } finally {
    if (out !== null) closeSync(out);
  }
  return { ...tally(samples, answered), skipped };
}

/** One answer to each question, scored. */
async function answer(prompts: Prompt[], { config, sampler }: EvalParts, rewards: Rewards): Promise<EvalRecord[]> {
  if (prompts.length === 0) return [];
  const { maxNewTokens, temperature, topK, topP, greedy } = config.eval;
  const groups = sampler.rolloutGroups(prompts, {
    groupSize: 1,
    maxNewTokens,
    temperature,
    topK,
    topP,
    greedy,
    seed: config.seed,
    step: 0,
  });
  await rewards.score(groups);
  return groups.map(({ prompt: { sample }, completions, rewards: [reward] }) => ({
    sample_id: sample.id,
    prompt: sample.messages,
    problem: questionText(sample),
    solution: sample.solution,
    response: completions[0]?.text ?? "",
    reward: reward as number,
  }));
}

function tally(samples: readonly Sample[], answered: ReadonlyMap<string, EvalRecord>): Omit<LevelResult, "skipped"> {
  const whole: Tally = { correct: 0, n: 0 };
  const parts: Record<string, Record<string, Tally>> = {};
  for (const sample of samples) {
    const record = answered.get(sample.id);
    if (record === undefined) continue;
    const tallies = [whole];
    for (const field of PART_FIELDS) {
      const name = sample.fields[field];
      if (typeof name !== "string") continue;
      parts[field] ??= {};
      parts[field][name] ??= { correct: 0, n: 0 };
      tallies.push(parts[field][name]);
    }
    for (const one of tallies) {
      one.n++;
      if (record.reward === 1) one.correct++;
    }
  }
  return { ...whole, parts };
}

/** The answers a file holds; a line that was cut off when a process died is removed from it. */
function readAnswers(file: string): Map<string, EvalRecord> {
  if (!existsSync(file)) return new Map();
  const text = readFileSync(file, "utf8");
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  if (whole.length < text.length) truncateSync(file, Buffer.byteLength(whole));
  const lines = whole.split("\n").filter((line) => line !== "");
  return new Map(
    lines.map((line, i) => {
      try {
        const record = JSON.parse(line) as EvalRecord;
        return [record.sample_id, record];
      } catch (error) {
        throw new CheckpointError(file, `line ${i + 1} is not valid JSON`, {}, error);
      }
    }),
  );
}

function questionText({ messages }: Sample): string {
  const content = messages.at(-1)?.content ?? "";
  if (typeof content === "string") return content;
  return content.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
}
