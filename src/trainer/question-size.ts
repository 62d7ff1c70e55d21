/** How long a question of a config is: measured on a few where their files and the model's are there, else estimated, and said to be. */

import { existsSync } from "node:fs";
import type { Config } from "../config/schema.ts";
import { checkMedia, mediaKey } from "../data/check-media.ts";
import type { DataSource } from "../data/datasets.ts";
import { mediaOf, Processor } from "../data/processor.ts";
import { mediaTokens, promptLength } from "../data/prompt-length.ts";
import { GroveError } from "../errors.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import type { Sample } from "../types.ts";
import { type QuestionSize, type Stage, visionEstimate } from "./plan.ts";

/** So many questions of the training set (of the first evaluation set for eval) are decoded and measured. */
export const SAMPLED = 8;
/** Qwen2-VL's tokenizer on English questions with the seed's wording: 4.5 to 5 characters a token. */
const CHARACTERS_PER_TOKEN = 4.5;
/** Tokens of the chat's frame: system turn, role marks, brackets around media. */
const FRAME_TOKENS = 25;
/** A question of SEED-Bench-R1 with its four options and the seed's wording, as text: hand-written ones take 107 to 127 tokens. */
const SEED_TEXT_TOKENS = 120;
const QWEN2_VL_VISION = { patchSize: 14, temporalPatchSize: 2, spatialMergeSize: 2 } as Qwen2VLConfig["vision"];

/** The questions to look at. */
type Asked = { source: DataSource; samples: readonly Sample[] };

export interface Lengths {
  size: QuestionSize | null;
  /** The least it may be: videos of data.minFrames where they were not looked at, completions that end at once. */
  shortest: QuestionSize | null;
  /** How the numbers came about. */
  basis: string;
}

/** Mean lengths of a few real questions, or an estimate that says so; without `decode` always an estimate, from records and knobs. */
export async function questionSize(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig | null,
  set: Asked | undefined,
  { decode = true }: { decode?: boolean } = {},
): Promise<Lengths> {
  const limit = { grpo: config.rollout.maxNewTokens, sft: 0, eval: config.eval.maxNewTokens }[stage];
  const some = spaced(set?.samples ?? [], SAMPLED);
  const processor = await Processor.load(config.model.path, config.data).catch((error: unknown) => {
    if (error instanceof GroveError) return null;
    throw error;
  });
  const responses = some.map(({ response = "" }) =>
    processor === null ? response.length / CHARACTERS_PER_TOKEN : processor.tokenizer.encode(response).length + 2,
  );
  const completion = stage === "sft" ? Math.round(mean(responses)) : limit;
  const shortest = stage === "sft" || config.rollout.ignoreEos ? completion : 1;
  const measured = processor === null || !decode ? [] : await measure(some, config, processor);
  if (measured.length > 0) {
    const prompt = Math.round(mean(measured.map((one) => one.prompt)));
    const vision = Math.round(mean(measured.map((one) => one.vision)));
    const size = { prompt, vision, completion };
    return { size, shortest: { ...size, completion: shortest }, basis: `mean of ${measured.length} questions` };
  }
  const most = estimate(config, shape, set, some, completion);
  const fewest = { ...config, data: { ...config.data, maxFrames: config.data.minFrames } };
  return { ...most, shortest: estimate(fewest, shape, set, some, shortest).size };
}

/** Lengths of the samples that can be measured; none where a file is missing. What is wrong with the data is check-data's business. */
async function measure(some: readonly Sample[], config: Config, processor: Processor) {
  if (!some.flatMap(mediaOf).every(({ file }) => existsSync(file))) return [];
  try {
    const media = await checkMedia(some, config.data, processor.sizeRule);
    return some.flatMap((sample) => {
      const sizes = mediaOf(sample).map((ref) => media.get(mediaKey(ref)));
      const good = sizes.flatMap((finding) => (finding !== undefined && "size" in finding ? [finding.size] : []));
      if (good.length < sizes.length) return [];
      const vision = good.reduce((sum, one) => sum + mediaTokens(one, processor.patchRule), 0);
      return [{ vision, prompt: promptLength(sample, good, processor, Number.POSITIVE_INFINITY) }];
    });
  } catch (error) {
    if (error instanceof GroveError) return [];
    throw error;
  }
}

function estimate(
  config: Config,
  shape: Qwen2VLConfig | null,
  set: Asked | undefined,
  some: readonly Sample[],
  completion: number,
): Omit<Lengths, "shortest"> {
  const source = set?.source ?? config.data.train[0] ?? Object.values(config.data.eval)[0];
  const usual = { videos: 1, images: source?.format === "longvideobench" ? 0 : 1 };
  const perQuestion = (kind: string) =>
    mean(some.map((sample) => mediaOf(sample).filter((ref) => ref.kind === kind).length));
  const media = some.length === 0 ? usual : { videos: perQuestion("video"), images: perQuestion("image") };
  const vision = visionEstimate(config.data, media, shape?.vision ?? QWEN2_VL_VISION);
  if (vision === null) {
    return {
      size: null,
      basis:
        "unknown: without data.resizedHeight the size of each picture decides, and media or model are not there to look at",
    };
  }
  const characters = (sample: Sample) =>
    sample.messages.reduce((sum, { content }) => {
      if (typeof content === "string") return sum + content.length;
      return sum + content.reduce((own, part) => own + (part.type === "text" ? part.text.length : 0), 0);
    }, 0);
  const text = some.length === 0 ? SEED_TEXT_TOKENS : mean(some.map(characters)) / CHARACTERS_PER_TOKEN + FRAME_TOKENS;
  const size = { prompt: Math.round(vision + text), vision: Math.round(vision), completion };
  const whole = `data.maxFrames frames a video, about ${Math.round(text)} tokens of text`;
  return { size, basis: `estimated, not measured: ${whole}` };
}

/** `n` of the items, evenly spread. */
export function spaced<T>(items: readonly T[], n: number): T[] {
  if (items.length <= n) return [...items];
  return Array.from({ length: n }, (_, i) => items[Math.floor((i * items.length) / n)] as T);
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
