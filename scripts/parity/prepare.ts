/** What our processor makes of the inputs, written for the Python side: chat text, ids, positions, pixels, random completions. */

import { readFile } from "node:fs/promises";
import { decodeImage } from "../../src/data/image.ts";
import { loadMedia } from "../../src/data/load-media.ts";
import type { Media } from "../../src/data/options.ts";
import { cutPatches } from "../../src/data/patches.ts";
import { mediaOf, Processor } from "../../src/data/processor.ts";
import { decodeVideo } from "../../src/data/video.ts";
import { writeSafetensors } from "../../src/model/safetensors.ts";
import { normal, randomInt } from "../../src/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type NumberArray } from "../../src/torch/tensor.ts";
import type { Prompt, Sample } from "../../src/types.ts";
import type { Input } from "./cases.ts";

/** As the Qwen2-VL processor has them; frames as the seed's rule samples them. */
const RULES = {
  frames: { fps: 2, minFrames: 4, maxFrames: 16 },
  size: { factor: 28, minPixels: 3136, maxPixels: 12_845_056 },
};

export interface Prepared {
  input: Input;
  prompt: Prompt;
  text: string;
  completions: Int32Array[];
  /** Factors of the log-probabilities in the loss whose gradients are compared, one array a completion. */
  weights: Float32Array[];
}

interface MediaPair {
  original: Media; // as decoded
  resized: Media;
}

export async function openProcessor(folder: string): Promise<Processor> {
  return Processor.load(folder, { ...RULES.size, maxPromptTokens: 100_000 });
}

/**
 * @param completionLengths tokens of each random completion of an input; the last one ends with a stop token
 */
export async function prepare(
  processor: Processor,
  inputs: readonly Input[],
  options: { file: string; seed: number; completionLengths: readonly number[] },
): Promise<Prepared[]> {
  const { tokenizer } = processor;
  const ordinary = tokenizer.idOf("<|endoftext|>"); // special tokens follow the ordinary ones
  const tensors: [name: string, data: NumberArray, shape: number[]][] = [];
  const prepared: Prepared[] = [];
  for (const [i, input] of inputs.entries()) {
    const sample: Sample = {
      id: input.name,
      messages: input.messages,
      solution: "",
      fields: {},
      source: { file: "parity", line: i + 1 },
    };
    const media: MediaPair[] = [];
    for (const { kind, file } of mediaOf(sample)) media.push(await readMedia(kind, file));
    const prompt = processor.build(
      sample,
      media.map(({ resized }) => ({ kind: resized.kind, input: cutPatches(resized, processor.patchRule) })),
    );
    const completions = options.completionLengths.map((length, g) =>
      Int32Array.from({ length }, (_, t) =>
        g === options.completionLengths.length - 1 && t === length - 1
          ? tokenizer.idOf("<|im_end|>")
          : randomInt(ordinary, options.seed, input.name, "completion", g, t),
      ),
    );
    const weights = options.completionLengths.map((length, g) =>
      Float32Array.from({ length }, (_, t) => normal(options.seed, input.name, "weight", g, t)),
    );
    prepared.push({
      input,
      prompt,
      text: tokenizer.chatText(input.messages, { addGenerationPrompt: true }),
      completions,
      weights,
    });
    completions.forEach((ids, g) => void tensors.push([`${i}.completion${g}`, ids, [ids.length]]));
    weights.forEach((values, g) => void tensors.push([`${i}.weights${g}`, values, [values.length]]));
    media.forEach(({ original, resized }, m) => {
      for (const [stage, { data, frames, height, width }] of [
        ["original", original],
        ["resized", resized],
      ] as const)
        tensors.push([`${i}.media${m}.${stage}`, data, [frames, height, width, 3]]);
    });
    for (const kind of ["images", "videos"] as const) {
      prompt[kind].forEach(({ pixels, grid }, m) => {
        const rows = grid[0] * grid[1] * grid[2];
        tensors.push([`${i}.${kind}${m}.pixels`, pixels, [rows, pixels.length / rows]]);
      });
    }
  }
  scope(() => {
    const entries = tensors.map(([name, data, shape]) => {
      const tensor = fromArray(data, shape);
      return { name, dtype: tensor.dtype, shape, read: () => tensor };
    });
    writeSafetensors(options.file, entries);
  });
  return prepared;
}

async function readMedia(kind: Media["kind"], file: string): Promise<MediaPair> {
  await readFile(file); // a missing file is an error of this tool
  const resized = await loadMedia({ kind, file, ...RULES, cache: null });
  if (kind === "image") {
    const { width, height, data } = await decodeImage(file);
    return { original: { kind, frames: 1, height, width, data }, resized };
  }
  const { width, height, frames } = await decodeVideo(file, RULES.frames);
  const data = new Uint8Array(Buffer.concat(frames));
  return { original: { kind, frames: frames.length, height, width, data }, resized };
}
