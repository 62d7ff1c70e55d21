/**
 * The plan that `--dry-run` prints: data found, steps, tokens, memory. Whatever is missing (files, the model's folder) is said, never an error, so
 * that a config can be planned on any machine.
 */

import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { totalmem } from "node:os";
import type { Config } from "../config/schema.ts";
import { type DataSource, readRecords } from "../data/datasets.ts";
import { GroveError } from "../errors.ts";
import { type Qwen2VLConfig, readConfig } from "../model/qwen2vl/config.ts";
import { releasedConfig, releasedSize } from "../model/qwen2vl/released.ts";
import type { Sample } from "../types.ts";
import {
  largestPack,
  type MemoryPart,
  memoryParts,
  optimizerBytes,
  parameterCount,
  peakBytes,
  type QuestionSize,
  type Stage,
} from "./plan.ts";
import { type Lengths, questionSize } from "./question-size.ts";
import {
  cheapestThatFits,
  describePlan,
  percent,
  type RecomputeChoice,
  recomputeChoices,
  roomBeside,
} from "./recompute-plan.ts";
import { totalSteps } from "./schedule.ts";

/** A data set of the plan. */
export interface PlannedSet {
  name: string;
  source: DataSource;
  samples: Sample[];
  /** What the data line says. */
  found: string;
}

/** Lines without a comment sign. Reads the records; decodes the media of a few questions where files and model folder are there. */
export async function planLines(stage: Stage, config: Config): Promise<string[]> {
  const sets = await readSets(stage, config);
  const { shape, line: modelLine } = readShape(config);
  const asked = sets.find(({ name, samples }) => samples.length > 0 && (stage === "eval" || name.startsWith("train")));
  const lengths = await questionSize(stage, config, shape, asked);
  return [
    `plan of ${stage}`,
    "data",
    ...sets.map(({ name, source, found }) => `  ${name}: ${found} (${source.file})`),
    ...(sets.length === 0 ? ["  none is named"] : []),
    `model: ${modelLine}`,
    ...stepLines(stage, config, sets),
    ...tokenLines(stage, config, lengths),
    ...compatLines(config),
    ...memoryLines(stage, config, shape, lengths.size, deviceBytes(config)),
  ];
}

/** Memory of the device that the plan is made for; null where it is not in this machine. A dry run has no libtorch to ask: the driver's tool says it. */
function deviceBytes({ device }: Config): number | null {
  if (device === "cpu") return totalmem();
  const index = /^cuda:(\d+)$/.exec(device)?.[1] ?? "0";
  try {
    const query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits", `--id=${index}`];
    const mib = Number(execFileSync("nvidia-smi", query, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
    return mib > 0 ? mib * 2 ** 20 : null;
  } catch {
    return null; // no driver here
  }
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
      return { name, source, samples, found: `${count(samples.length)} records${unusable}` };
    }),
  );
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

function memoryLines(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig | null,
  size: QuestionSize | null,
  device: number | null,
): string[] {
  if (shape === null) return [];
  const known = size ?? { prompt: 0, vision: 0, completion: 0 };
  const again = size === null || stage === "eval" ? null : recomputed(stage, config, shape, size, device);
  const parts = memoryParts(stage, config, shape, known, again?.chosen.plan).filter(
    ({ during }) => size !== null || during === "always",
  );
  const host = stage === "eval" ? 0 : optimizerBytes(config, shape).host;
  const when: Record<MemoryPart["during"], string> = {
    always: "",
    rollout: ", in the rollout only",
    update: ", in the update only",
  };
  return [
    ...(again?.lines ?? []),
    `memory on ${config.device}, GiB; weights to optimizer exactly, the rest estimated, CUDA's own not counted`,
    ...parts.map(({ name, bytes, during }) => `  ${name}: ${gib(bytes)}${when[during]}`),
    ...(host > 0 ? [`  moments, in host memory and not counted: ${gib(host)}`] : []),
    size === null ? `  the rest is not known: prompt lengths are not` : `  at most: ${gib(peakBytes(parts))}`,
  ];
}

/** What the largest pack computes again on this device; where the device is not known, on which device what. */
function recomputed(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  device: number | null,
): { chosen: RecomputeChoice; lines: string[] } {
  const choices = recomputeChoices(largestPack(stage, config, shape, size), config, shape);
  const always = memoryParts(stage, config, shape, size)
    .filter(({ during }) => during === "always")
    .reduce((sum, { bytes }) => sum + bytes, 0);
  const head = `computed again in the update (model.recompute: ${config.model.recompute})`;
  const say = ({ plan, share }: RecomputeChoice) =>
    `${describePlan(plan)}${share === 0 ? "" : `, ${percent(share)} of a forward`}`;
  if (device === null && choices.length > 1) {
    const from = (choice: RecomputeChoice) =>
      `${say(choice)}: from ${gib(roomBeside.device(always, choice.bytes))} GiB on`;
    return {
      chosen: choices[0],
      lines: [`${head}, as little as fits the device`, ...worthTelling(choices).map((choice) => `  ${from(choice)}`)],
    };
  }
  const room = device === null ? Number.POSITIVE_INFINITY : roomBeside.room(always, device);
  const chosen = cheapestThatFits(choices, room);
  const fit = chosen.bytes > room ? "; it may not fit" : "";
  const on = device === null ? "" : `; ${config.device} has ${gib(device)} GiB${fit}`;
  return { chosen, lines: [`${head}: ${say(chosen)}${on}`] };
}

/** The first and last, and of those between whatever takes 5 % less than the one told before. */
function worthTelling(choices: readonly RecomputeChoice[]): RecomputeChoice[] {
  const told: RecomputeChoice[] = [];
  choices.forEach((choice, i) => {
    const before = told.at(-1);
    if (before === undefined || i === choices.length - 1 || choice.bytes < 0.95 * before.bytes) told.push(choice);
  });
  return told;
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

function epochsText(epochs: number): string {
  return epochs === 1 ? "1 epoch" : `${Number(epochs.toPrecision(3))} epochs`;
}

/** Two digits after the point, more for what would read as nothing. */
function gib(bytes: number): string {
  const value = bytes / 2 ** 30;
  return value >= 0.1 ? value.toFixed(2) : value.toPrecision(2);
}
