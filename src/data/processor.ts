/**
 * Turns a sample and its media, cut into patches, into a prompt for the model: chat text, token ids with one placeholder per merged patch, M-RoPE
 * positions, normalised patches. Same numbers as transformers' Qwen2VLProcessor.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointError, DataError, PromptTooLongError } from "../errors.ts";
import type { ContentPart, Prompt, Sample, VisionInput } from "../types.ts";
import { mropePositions, type VisionTokenIds } from "./mrope.ts";
import type { DataOptions, SizeRule } from "./options.ts";
import type { PatchRule, Picture } from "./patches.ts";
import { Tokenizer } from "./tokenizer.ts";

/** Mean and standard deviation of CLIP's training pictures: what Qwen2-VL's preprocessor_config.json holds. */
const CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD = [0.26862954, 0.26130258, 0.27577711];

/** One picture or video that a sample's messages name, in order of appearance. */
export interface MediaRef {
  kind: "image" | "video";
  file: string;
}

/** The media that a sample's messages name, in order of appearance. */
export function mediaOf(sample: Sample): MediaRef[] {
  return sample.messages.flatMap(({ content }) =>
    typeof content === "string" ? [] : content.flatMap((part): MediaRef[] => mediaPart(part)),
  );
}

function mediaPart(part: ContentPart): MediaRef[] {
  if (part.type === "image") return [{ kind: "image", file: part.image }];
  if (part.type === "video") return [{ kind: "video", file: part.video }];
  return [];
}

export type ProcessorOptions = Pick<
  DataOptions,
  "minPixels" | "maxPixels" | "resizedHeight" | "resizedWidth" | "maxPromptTokens"
>;

export class Processor {
  readonly tokenizer: Tokenizer;
  readonly patchRule: PatchRule;
  /** How media workers must resize for this model. */
  readonly sizeRule: SizeRule;
  readonly tokenIds: VisionTokenIds;
  readonly #maxPromptTokens: number;

  private constructor(tokenizer: Tokenizer, patchRule: PatchRule, options: ProcessorOptions) {
    this.tokenizer = tokenizer;
    this.patchRule = patchRule;
    const { minPixels, maxPixels, resizedHeight, resizedWidth } = options;
    this.sizeRule = {
      factor: patchRule.patchSize * patchRule.merge,
      minPixels,
      maxPixels,
      resizedHeight,
      resizedWidth,
    };
    this.tokenIds = { image: tokenizer.idOf("<|image_pad|>"), video: tokenizer.idOf("<|video_pad|>") };
    this.#maxPromptTokens = options.maxPromptTokens;
  }

  /**
   * Reads tokenizer and preprocessor_config.json of a Hugging Face folder.
   *
   * @throws CheckpointError for missing or unusable files
   */
  static async load(folder: string, options: ProcessorOptions): Promise<Processor> {
    const [tokenizer, patchRule] = await Promise.all([Tokenizer.load(folder), readPatchRule(folder)]);
    return new Processor(tokenizer, patchRule, options);
  }

  /**
   * @param pictures the sample's media in the order of `mediaOf(sample)`, cut by `patchRule`
   * @throws PromptTooLongError when the prompt exceeds maxPromptTokens: media tokens cannot be cut
   * @throws DataError when placeholders and media differ in number, e.g. because a question's text contains one
   */
  build(sample: Sample, pictures: readonly Picture[]): Prompt {
    const text = this.tokenizer.chatText(sample.messages, { addGenerationPrompt: true });
    const inputsOf = (kind: Picture["kind"]) => pictures.filter((one) => one.kind === kind).map(({ input }) => input);
    const [images, videos] = [inputsOf("image"), inputsOf("video")];
    const inputIds = this.#expand(sample, this.tokenizer.encode(text), images, videos);
    const grids = (inputs: readonly VisionInput[]) => inputs.map((input) => input.grid);
    const { merge } = this.patchRule;
    const { positions, next } = mropePositions(inputIds, grids(images), grids(videos), this.tokenIds, merge);
    return { sample, inputIds, positions, nextPosition: next, images, videos };
  }

  /** Repeats every placeholder once per merged patch of its picture. */
  #expand(
    sample: Sample,
    ids: Int32Array,
    images: readonly VisionInput[],
    videos: readonly VisionInput[],
  ): Int32Array<ArrayBuffer> {
    const { image, video } = this.tokenIds;
    const count = (id: number) => ids.reduce((n, x) => n + (x === id ? 1 : 0), 0);
    for (const [name, found, expected] of [
      ["image", count(image), images.length],
      ["video", count(video), videos.length],
    ] as const) {
      if (found === expected) continue;
      const problem = `the chat has ${found} ${name} placeholders for ${expected} ${name}s`;
      throw new DataError({ ...sample.source, sampleId: sample.id }, problem);
    }
    const tokens = ({ grid: [t, h, w] }: VisionInput) => (t * h * w) / this.patchRule.merge ** 2;
    const sizes = { [image]: images.map(tokens), [video]: videos.map(tokens) };
    const total = [...images, ...videos].reduce((sum, input) => sum + tokens(input) - 1, ids.length);
    if (total > this.#maxPromptTokens) throw new PromptTooLongError(sample.id, total, this.#maxPromptTokens);
    const out = new Int32Array(total);
    let at = 0;
    for (const id of ids) {
      const repeat = sizes[id]?.shift() ?? 1;
      out.fill(id, at, at + repeat);
      at += repeat;
    }
    return out;
  }
}

async function readPatchRule(folder: string): Promise<PatchRule> {
  const path = join(folder, "preprocessor_config.json");
  let config: Record<string, unknown>;
  try {
    config = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
  } catch (cause) {
    throw new CheckpointError(path, `cannot be read: ${(cause as Error).message}`, {}, cause);
  }
  const integer = (name: string, fallback: number) => {
    const value = config[name] ?? fallback;
    if (Number.isInteger(value) && (value as number) > 0) return value as number;
    throw new CheckpointError(path, `${name} must be a positive integer, got ${JSON.stringify(value)}`);
  };
  const triple = (name: string, fallback: number[]) => {
    const value = config[name] ?? fallback;
    if (Array.isArray(value) && value.length === 3 && value.every(Number.isFinite)) return value as unknown as Triple;
    throw new CheckpointError(path, `${name} must be three numbers, got ${JSON.stringify(value)}`);
  };
  return {
    patchSize: integer("patch_size", 14),
    temporalPatch: integer("temporal_patch_size", 2),
    merge: integer("merge_size", 2),
    mean: triple("image_mean", CLIP_MEAN),
    std: triple("image_std", CLIP_STD),
  };
}

type Triple = readonly [number, number, number];
