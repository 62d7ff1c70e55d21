/**
 * The plan that `--dry-run` prints: data found, steps, tokens, memory. Whatever is missing (files, the model's folder) is said, never an error, so
 * that a config can be planned on any machine.
 */

import { existsSync, readdirSync } from "node:fs";
import type { Config } from "../config/schema.ts";
import { type DataSource, readRecords } from "../data/datasets.ts";
import { mediaOf } from "../data/processor.ts";
import { GroveError, type MemoryError } from "../errors.ts";
import { type Qwen2VLConfig, readConfig } from "../model/qwen2vl/config.ts";
import { releasedConfig, releasedSize } from "../model/qwen2vl/released.ts";
import type { Sample } from "../types.ts";
import { memoryPlan } from "./memory-text.ts";
import { parameterCount, type Stage } from "./plan.ts";
import { type Lengths, questionSize, SAMPLED, spaced } from "./question-size.ts";
import { totalSteps } from "./schedule.ts";

/** A data set of the plan. */
export interface PlannedSet {
  name: string;
  source: DataSource;
  samples: Sample[];
  /** What the data line says. */
  found: string;
}

/** What a plan is made for. */
export interface PlanDevice {
  ranks: number;
  /** Who says so. */
  from: string;
  /** Memory of each GPU; null where none is known. */
  bytes: number | null;
  of: string;
}

export interface Plan {
  /** Without a comment sign. */
  lines: string[];
  /** Where the GPUs cannot hold it. */
  refusal: MemoryError | null;
}

/** Reads the records; unless `decode` is false also decodes the media of a few questions, where files and model folder are there. */
export async function makePlan(
  stage: Stage,
  config: Config,
  at: PlanDevice,
  options: { decode?: boolean } = {},
): Promise<Plan> {
  const sets = await readSets(stage, config);
  const { shape, line: modelLine } = readShape(config);
  const asked = sets.find(({ name, samples }) => samples.length > 0 && (stage === "eval" || name.startsWith("train")));
  const lengths = await questionSize(stage, config, shape, asked, options);
  const training = sets.filter(({ name }) => name.startsWith("train"));
  const known = training.length > 0 && training.every(({ samples }) => samples.length > 0);
  const records = known ? training.reduce((sum, { samples }) => sum + samples.length, 0) : undefined;
  const { size, shortest } = lengths;
  const memory =
    shape === null
      ? null
      : memoryPlan({ stage, config, shape, size, shortest, ranks: at.ranks, records, device: at.bytes }, at.of);
  return {
    lines: [
      `plan of ${stage}`,
      "data",
      ...sets.map(({ name, source, found }) => `  ${name}: ${found} (${source.file})`),
      ...(asksNone(stage, sets) ? [`  ${stage === "eval" ? "data.eval" : "data.train"} names none`] : []),
      `model: ${modelLine}`,
      ...(stage === "eval" ? [] : [`ranks: ${at.ranks} (${at.from})`]),
      ...stepLines(stage, config, sets),
      ...tokenLines(stage, config, lengths),
      ...compatLines(config),
      ...(memory?.lines ?? []),
    ],
    refusal: memory?.refusal ?? null,
  };
}

/** Whether no set is named that the stage itself asks. */
function asksNone(stage: Stage, sets: readonly PlannedSet[]): boolean {
  return stage === "eval" ? sets.length === 0 : !sets.some(({ name }) => name.startsWith("train"));
}

async function readSets(stage: Stage, config: Config): Promise<PlannedSet[]> {
  const { train, eval: levels } = config.data;
  const evaluates = stage === "eval" || config.trainer.evalEvery > 0;
  const sources: [name: string, source: DataSource, shuffleOptions: boolean][] = [
    ...(stage === "eval"
      ? []
      : train.map((source, i) => [`train ${i + 1}`, source, true] as [string, DataSource, boolean])),
    ...Object.entries(evaluates ? levels : {}).map(
      ([level, source]) => [`eval ${level}`, source, false] as [string, DataSource, boolean],
    ),
  ];
  return Promise.all(
    sources.map(async ([name, source, shuffleOptions]) => {
      const samples: Sample[] = [];
      let bad = 0;
      try {
        for await (const record of readRecords(source, { seed: config.seed, shuffleOptions })) {
          if ("sample" in record) samples.push(record.sample);
          else bad++;
        }
      } catch (error) {
        if (!(error instanceof GroveError)) throw error;
        return { name, source, samples: [], found: existsSync(source.file) ? "cannot be read" : "not found" };
      }
      const unusable = bad === 0 ? "" : `, ${count(bad)} unusable; check-data names them`;
      return { name, source, samples, found: `${count(samples.length)} records${unusable}${lostMedia(samples)}` };
    }),
  );
}

/** What of the media of a few records is not there, as with a wrong mediaRoot. */
function lostMedia(samples: readonly Sample[]): string {
  const files = spaced(samples, SAMPLED).map((sample) => mediaOf(sample).map(({ file }) => file));
  const lost = files.flatMap((own) => own.find((file) => !existsSync(file)) ?? []);
  if (lost.length === 0) return "";
  return `; of ${files.length} that were looked at ${lost.length} lack media, such as ${lost[0]}`;
}

function readShape({ model, dtype }: Config): { shape: Qwen2VLConfig | null; line: string } {
  if (!existsSync(model.path)) {
    const size = releasedSize(model.path);
    if (size === undefined) return { shape: null, line: `not found: ${model.path}; no memory estimate` };
    const shape = releasedConfig(size);
    const assumed = `planned as the released Qwen2-VL-${size}, ${count(parameterCount(shape))} parameters in ${dtype}`;
    return { shape, line: `not found: ${model.path}; ${assumed}` };
  }
  try {
    const shape = readConfig(model.path);
    const stored = readdirSync(model.path).some((name) => name.endsWith(".safetensors"));
    const weights =
      model.init === "random" ? "drawn at random" : stored ? "read from there" : "which are not there yet";
    return { shape, line: `${model.path}: ${count(parameterCount(shape))} parameters in ${dtype}, ${weights}` };
  } catch (error) {
    if (!(error instanceof GroveError)) throw error;
    return { shape: null, line: `${error.message}; no memory estimate` };
  }
}

function stepLines(stage: Stage, config: Config, sets: readonly PlannedSet[]): string[] {
  const { questionsPerStep, epochs, steps, evalEvery, evalLimit, iterations } = config.trainer;
  const inSets = (kind: string) => sets.filter(({ name }) => name.startsWith(kind));
  const recordsOf = (some: readonly PlannedSet[]) => some.reduce((sum, { samples }) => sum + samples.length, 0);
  if (stage === "eval") {
    const complete = sets.every(({ samples }) => samples.length > 0);
    const questions = complete ? count(recordsOf(sets)) : "how many is known once all sets are there";
    return [`questions: ${questions}, ${count(config.eval.batchSize)} at a time`];
  }
  const known = inSets("train").every(({ samples }) => samples.length > 0) && inSets("train").length > 0;
  const records = recordsOf(inSets("train"));
  const made = known ? totalSteps(config, records) : steps;
  const passes = known && made !== undefined ? ` = ${epochsText((made * questionsPerStep) / records)}` : "";
  const evaluations =
    evalEvery > 0 ? `, an evaluation of ${count(evalLimit)} questions a set every ${evalEvery} steps` : "";
  return [
    made === undefined
      ? `steps: ${epochsText(epochs)} of ${count(questionsPerStep)} records a step; how many is known once all training data is there`
      : `steps: ${count(made)} of ${count(questionsPerStep)} records${passes}${iterations > 1 ? `, ${iterations} updates each` : ""}${evaluations}`,
  ];
}

function tokenLines(stage: Stage, config: Config, { size, basis }: Lengths): string[] {
  if (size === null) return [`tokens: ${basis}`];
  const { prompt, vision, completion } = size;
  const { questionsPerStep: questions } = config.trainer;
  const { groupSize, temperature, topK, topP } = config.rollout;
  const lines = [`prompt: ${count(prompt)} tokens, ${count(vision)} of them of pictures (${basis})`];
  if (stage === "eval") return [...lines, `answer: up to ${count(completion)} tokens`];
  if (stage === "sft") {
    const response = completion === 0 ? "responses not known" : `${count(questions * completion)} of responses`;
    return [...lines, `tokens a step: ${count(questions * prompt)} of prompts, ${response}`];
  }
  const sampled = questions * groupSize;
  const among = topK > 0 ? `the ${topK} likeliest tokens` : "all tokens";
  const nucleus = topP < 1 ? ` that hold ${topP}` : "";
  return [
    ...lines,
    `completions a step: ${count(questions)} questions x ${groupSize} = ${count(sampled)}, temperature ${temperature}, among ${among}${nucleus}`,
    `tokens a step: ${count(questions * prompt)} of prompts (once a group), up to ${count(sampled * completion)} of completions`,
  ];
}

function compatLines({ compat }: Config): string[] {
  const on = Object.entries(compat).filter(([, value]) => value);
  return on.length === 0 ? [] : [`as the seed does: ${on.map(([name]) => `compat.${name}`).join(", ")}`];
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

function epochsText(epochs: number): string {
  return epochs === 1 ? "1 epoch" : `${Number(epochs.toPrecision(3))} epochs`;
}
