/** A tiny Qwen2-VL with sharp distributions, prompts with videos and images for it, and slow references without a cache. */

import { readFileSync } from "node:fs";
import { mropePositions } from "../../src/data/mrope.ts";
import { packGroups } from "../../src/model/packed.ts";
import { parseConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { normal, randomInt } from "../../src/random.ts";
import type { TextDecoder } from "../../src/rollout/sampler-model.ts";
import { setNumThreads } from "../../src/torch/cuda.ts";
import { copy_, mul_ } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Device, DType } from "../../src/torch/tensor.ts";
import type { Prompt, RolloutGroup, VisionInput } from "../../src/types.ts";

setNumThreads(1); // two threads wait for each other longer than these sizes take

const CONFIG = new URL("../fixtures/qwen2vl/config.json", import.meta.url);

/** Text ids lie below 90, 94 stops as 95 does. */
export const TOKENS = { text: 90, image: 90, video: 91, visionStart: 92, visionEnd: 93, stops: [95, 94] };
export const FORBIDDEN = [90, 91, 92, 93];

/** What tinyModel({ wide: true }) has instead: heads of a size that the kernels take. */
const WIDE = {
  text_config: {
    hidden_size: 256,
    intermediate_size: 384,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    rope_parameters: { mrope_section: [8, 12, 12], rope_theta: 10000, rope_type: "default" },
  },
  vision_config: { hidden_size: 256 },
};

export interface TinyModelOptions {
  device?: Device;
  dtype?: DType;
  seed?: number;
  stops?: number[];
  wide?: boolean;
}

/** Weights a few times their usual size: tokens then depend clearly on what they attend to, and logits span several units. */
export function tinyModel(options: TinyModelOptions = {}): Qwen2VL {
  const { device = "cpu", dtype = "float32", seed = 3, stops = TOKENS.stops, wide = false } = options;
  const json = JSON.parse(readFileSync(CONFIG, "utf8"));
  const parts = wide ? (Object.keys(WIDE) as (keyof typeof WIDE)[]) : [];
  for (const part of parts) json[part] = { ...json[part], ...WIDE[part] };
  const config = parseConfig(json, { eos_token_id: stops });
  // Drawn on the CPU, so that every device gets the same weights.
  const model = Qwen2VL.random(config, { device: "cpu", dtype: "float32", seed });
  for (const { tensor } of model.parameters) if (tensor.ndim > 1) mul_(tensor, wide ? 2.5 : 5);
  if (device === "cpu" && dtype === "float32") return model;
  const moved = Qwen2VL.random(config, { device, dtype, seed });
  scope(() => {
    for (const [i, { tensor }] of moved.parameters.entries()) copy_(tensor, model.parameters[i]!.tensor);
  });
  model[Symbol.dispose]();
  return moved;
}

/** Writes ids as words. */
export const decoder: TextDecoder = {
  vocabSize: 96,
  eosTokenIds: TOKENS.stops,
  encode: (text) => Int32Array.from({ length: text.length }, (_, i) => text.charCodeAt(i) % TOKENS.text),
  decode: (ids) => Array.from(ids, (id) => `t${id}`).join(" "),
};

/** A prompt of about `length` tokens: words, and with `media` a video and an image in between. */
export function tinyPrompt(id: string, length: number, media = false): Prompt {
  const words = (count: number, at: string) =>
    Array.from({ length: count }, (_, i) => randomInt(TOKENS.text, id, at, i));
  const video = vision(id, [2, 4, 4]);
  const image = vision(id, [1, 4, 6]);
  const block = (pad: number, { grid: [t, h, w] }: VisionInput) => [
    TOKENS.visionStart,
    ...new Array<number>((t * h * w) / 4).fill(pad),
    TOKENS.visionEnd,
  ];
  const inputIds = Int32Array.from([
    ...words(length - Math.floor(length / 2), "head"),
    ...(media ? [...block(TOKENS.video, video), ...block(TOKENS.image, image)] : []),
    ...words(Math.floor(length / 2), "tail"),
  ]);
  const grids = media ? { images: [image.grid], videos: [video.grid] } : { images: [], videos: [] };
  const { positions, next } = mropePositions(inputIds, grids.images, grids.videos, TOKENS, 2);
  const sample = { id, messages: [], solution: "", fields: {}, source: { file: "tiny.jsonl", line: 1 } };
  return {
    sample,
    inputIds,
    positions,
    nextPosition: next,
    images: media ? [image] : [],
    videos: media ? [video] : [],
  };
}

function vision(id: string, grid: VisionInput["grid"]): VisionInput {
  const size = grid[0] * grid[1] * grid[2] * 96;
  return { pixels: Float32Array.from({ length: size }, (_, i) => normal(id, grid[0], i)), grid };
}

/** log p of every token of the groups' completions by one packed pass, which knows nothing of caches. In order of groups. */
export function passLogprobs(model: Qwen2VL, groups: readonly RolloutGroup[]): number[] {
  return scope(() => {
    const pack = packGroups(
      groups.map(({ prompt, completions }) => ({ prompt, completions: completions.map(({ ids }) => ids) })),
    );
    using pass = model.pass(pack, { grad: false });
    return pass.logprobs.toNumbers();
  });
}

/** The likeliest allowed continuation, by a full forward pass per token. */
export function greedyReference(
  model: Qwen2VL,
  prompt: Prompt,
  maxNewTokens: number,
): { ids: number[]; margin: number } {
  const ids: number[] = [];
  let margin = Number.POSITIVE_INFINITY;
  const allowed = Array.from({ length: 96 }, (_, i) => i).filter((i) => !FORBIDDEN.includes(i));
  while (ids.length < maxNewTokens && !TOKENS.stops.includes(ids.at(-1) ?? -1)) {
    const completions = allowed.map((id) => ({ ids: Int32Array.from([...ids, id]) }));
    const all = passLogprobs(model, [{ prompt, completions } as unknown as RolloutGroup]);
    const last = allowed.map((_, i) => all[(i + 1) * (ids.length + 1) - 1] as number);
    const order = [...last.keys()].sort((a, b) => (last[b] as number) - (last[a] as number));
    margin = Math.min(margin, (last[order[0] as number] as number) - (last[order[1] as number] as number));
    ids.push(allowed[order[0] as number] as number);
  }
  return { ids, margin };
}
