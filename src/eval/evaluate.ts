/**
 * Accuracy of a policy on sets of questions: greedy (as the seed in effect decodes) or sampled, scored by the same reward code as training.
 * Answers go to JSONL files in the seed's fields, a line per question as soon as its batch is done; an evaluation that was stopped asks
 * only the questions that have no line. Several processes can share the questions.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import { BadSamples } from "../data/bad-samples.ts";
import { readDataset } from "../data/datasets.ts";
import type { PromptLoader } from "../data/loader.ts";
import { checkGoldAnswers } from "../reward/gold.ts";
import { createRewards, type Rewards } from "../reward/rewards.ts";
import type { Sampler } from "../rollout/sampler.ts";
import type { Metrics, Prompt, Sample } from "../types.ts";
import { AnswerFiles, type EvalRecord, type Shard, shardOf } from "./answers.ts";
import { addConsistency, consistencyShare, emptyConsistency, tallyConsistency } from "./consistency.ts";
import { partAt, partPaths } from "./parts.ts";
import type { EvalResults, LevelResult } from "./report.ts";

export interface EvalParts {
  config: Config;
  loader: PromptLoader;
  sampler: Sampler;
}

export interface EvalOptions {
  /** Ask only the first so many questions of each level. */
  limit?: number | undefined;
  /** Ask only this share of them; the results are those of the share. */
  shard?: Shard | undefined;
  /** Folder of the answers; none are written, and none read, without. */
  folder?: string;
  onProgress?: (progress: { level: string; done: number; total: number }) => void;
  /** Count how often answers follow from their reasoning. Default: eval.consistency, where there is a config. */
  consistency?: boolean;
  /** Asked between batches; true ends the evaluation. */
  stopped?: () => boolean;
}

export type Levels = Record<string, readonly Sample[]>;

/**
 * Asks every question of every level that has no answer yet, then counts. Without a shard the answers of all shards in the folder become
 * one file per level, in the order of the questions. Returns null when `stopped` said so before the last question.
 */
export async function evaluateLevels(
  levels: Levels,
  parts: EvalParts,
  options: EvalOptions = {},
): Promise<EvalResults | null> {
  const { eval: evaluation, compat } = parts.config;
  const rewards = createRewards([{ name: evaluation.reward, weight: 1, timeoutS: 60 }], {
    firstLetter: compat.firstLetterReward,
  });
  try {
    const results: EvalResults = {};
    for (const [level, samples] of Object.entries(levels)) {
      const asked = shardOf(samples.slice(0, options.limit), options.shard);
      const result = await evaluateLevel(level, asked, parts, rewards, options);
      if (result === null) return null;
      results[level] = result;
    }
    return results;
  } finally {
    await rewards.close();
  }
}

/** Questions that have no answer in the folder yet, over all levels. */
export function openQuestions(levels: Levels, { folder = "", limit, shard }: EvalOptions): number {
  return Object.entries(levels).reduce((sum, [level, samples]) => {
    const answered = new AnswerFiles(folder, level, shard).read();
    return sum + shardOf(samples.slice(0, limit), shard).filter(({ id }) => !answered.has(id)).length;
  }, 0);
}

/**
 * The results of the answers that are there, without a model; a question without an answer counts as skipped. Without a shard the files of
 * shards become one file per level.
 */
export function countAnswers(levels: Levels, options: EvalOptions): EvalResults {
  const { folder = "", limit, shard, consistency = false } = options;
  return Object.fromEntries(
    Object.entries(levels).map(([level, samples]) => {
      const files = new AnswerFiles(folder, level, shard);
      const answers = files.read();
      if (shard === undefined) files.merge(samples, answers);
      return [level, tally(shardOf(samples.slice(0, limit), shard), answers, consistency)];
    }),
  );
}

/**
 * The questions of config.data.eval by level, options in the order of the file.
 * @throws DataError for a record that cannot be read or has no gold answer
 */
export async function readLevels(config: Config, bad = new BadSamples(config.data)): Promise<Record<string, Sample[]>> {
  const levels: Record<string, Sample[]> = {};
  for (const [level, source] of Object.entries(config.data.eval)) {
    const samples = await readDataset(source, { bad });
    checkGoldAnswers(samples, level, { firstLetter: config.compat.firstLetterReward, reward: config.eval.reward });
    levels[level] = samples;
  }
  return levels;
}

/** The results of shares of the same levels as those of the whole; parts are left out. */
export function sumResults(shares: readonly EvalResults[]): EvalResults {
  const levels = Object.keys(shares[0] ?? {});
  return Object.fromEntries(
    levels.map((level) => {
      const sum: LevelResult = { correct: 0, n: 0, parts: {}, skipped: 0 };
      for (const share of shares) {
        const one = share[level] as LevelResult;
        sum.correct += one.correct;
        sum.n += one.n;
        sum.skipped += one.skipped;
        if (one.consistency !== undefined) {
          sum.consistency ??= emptyConsistency();
          addConsistency(sum.consistency, one.consistency);
        }
      }
      return [level, sum];
    }),
  );
}

/** Results as metrics: `eval/<level>/accuracy` and `eval/<level>/n`; with eval.consistency `eval/<level>/consistency`, and `..._of_right` of right answers. */
export function evalMetrics(results: EvalResults): Metrics {
  const metrics: Metrics = {};
  for (const [level, { correct, n, consistency }] of Object.entries(results)) {
    if (n > 0) metrics[`eval/${level}/accuracy`] = correct / n;
    metrics[`eval/${level}/n`] = n;
    if (consistency === undefined) continue;
    const [all, right] = [consistencyShare(consistency.all), consistencyShare(consistency.right)];
    if (all !== null) metrics[`eval/${level}/consistency`] = all;
    if (right !== null) metrics[`eval/${level}/consistency_of_right`] = right;
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
  const files = options.folder === undefined ? null : new AnswerFiles(options.folder, level, options.shard);
  const answered = files?.read() ?? new Map<string, EvalRecord>();
  const open = samples.filter((sample) => !answered.has(sample.id));
  using out = files?.open();
  for (let start = 0; start < open.length; start += batchSize) {
    if (options.stopped?.()) return null;
    const batch = open.slice(start, start + batchSize);
    parts.loader.prefetch(open.slice(start, start + 2 * batchSize));
    const prompts: Prompt[] = [];
    for (const sample of batch) {
      const prompt = await parts.loader.load(sample);
      if (prompt !== null) prompts.push(prompt);
    }
    for (const record of await answer(prompts, parts, rewards)) {
      answered.set(record.sample_id, record);
      out?.write(record);
    }
    const done = samples.length - open.length + Math.min(start + batchSize, open.length);
    options.onProgress?.({ level, done, total: samples.length });
    await nextTurn();
  }
  if (options.shard === undefined) files?.merge(samples, answered);
  return tally(samples, answered, options.consistency ?? parts.config.eval.consistency);
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
    ...partsOf(sample),
  }));
}

function partsOf(sample: Sample): Pick<EvalRecord, "parts"> {
  const paths = partPaths(sample);
  return paths.length === 0 ? {} : { parts: paths };
}

/** Counts what was answered; a question that could not be asked has no answer. */
function tally(
  samples: readonly Sample[],
  answered: ReadonlyMap<string, EvalRecord>,
  consistency: boolean,
): LevelResult {
  const result: LevelResult = { correct: 0, n: 0, parts: {}, skipped: 0 };
  for (const sample of samples) {
    const record = answered.get(sample.id);
    if (record === undefined) {
      result.skipped++;
      continue;
    }
    const inner = partPaths(sample).flatMap((path) => path.map((_, i) => partAt(result.parts, path.slice(0, i + 1))));
    for (const one of [result, ...inner]) {
      one.n++;
      if (record.reward === 1) one.correct++;
    }
  }
  if (consistency) result.consistency = tallyConsistency(samples.flatMap(({ id }) => answered.get(id) ?? []));
  return result;
}

function questionText({ messages }: Sample): string {
  const content = messages.at(-1)?.content ?? "";
  if (typeof content === "string") return content;
  return content.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
}
