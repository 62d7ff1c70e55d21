/** Shapes that benchmarks run with random weights: the released Qwen2-VL models, and prompts of the seed's size. */

import { mropePositions } from "../../src/data/mrope.ts";
import type { Qwen2VLConfig } from "../../src/model/qwen2vl/config.ts";
import { releasedConfig, releasedSize } from "../../src/model/qwen2vl/released.ts";
import type { Prompt, VisionInput } from "../../src/types.ts";

/** "qwen2-vl-7b" and the like; "tiny" is a 2B of two narrow layers, which tries a benchmark out where there is no GPU. */
export function shapeConfig(name: string): Qwen2VLConfig {
  const size = releasedSize(name);
  if (name === "tiny") return tinyConfig();
  if (size === undefined) throw new Error(`--shape ${name}: expected qwen2-vl-2b, qwen2-vl-7b, qwen2-vl-72b or tiny`);
  return releasedConfig(size);
}

function tinyConfig(): Qwen2VLConfig {
  const { text, vision, ...rest } = releasedConfig("2B");
  return {
    ...rest,
    text: {
      ...text,
      hiddenSize: 64,
      intermediateSize: 128,
      numLayers: 2,
      numHeads: 4,
      numKvHeads: 2,
      mropeSection: [2, 3, 3],
    },
    vision: { ...vision, depth: 2, embedDim: 64, numHeads: 4 },
  };
}

/**
 * Prompts as the seed's: 16 frames and one image at 252 x 252 (648 and 81 tokens), four brackets, and text up to `tokens` in all (931: 198 of
 * text). Ids differ from prompt to prompt, pictures do not.
 */
export function seedPrompts(count: number, tokens = 931): Prompt[] {
  const video: VisionInput = { grid: [8, 18, 18], pixels: noise(8 * 18 * 18) };
  const image: VisionInput = { grid: [1, 18, 18], pixels: noise(18 * 18) };
  const text = tokens - 648 - 81 - 4;
  if (!(text >= 0)) throw new Error(`--prompt ${tokens}: 733 or more, which the pictures take`);
  return Array.from({ length: count }, (_, i) => {
    const before = Math.min(text, 90 + i);
    const inputIds = Int32Array.from([
      ...Array<number>(before).fill(1000 + i),
      ...[151652, ...Array<number>(648).fill(151656), 151653],
      ...[151652, ...Array<number>(81).fill(151655), 151653],
      ...Array.from({ length: text - before }, (_, t) => 2000 + ((7 * t + i) % 5000)),
    ]);
    const ids = { image: 151655, video: 151656 };
    const { positions, next } = mropePositions(inputIds, [image.grid], [video.grid], ids, 2);
    const sample = {
      id: String(i),
      messages: [],
      solution: "",
      fields: {},
      source: { file: "bench", line: i + 1 },
    };
    return { sample, inputIds, positions, nextPosition: next, images: [image], videos: [video] };
  });
}

/** Patches that are not all alike: constants would let the hardware run faster than real pictures do. */
function noise(patches: number): Float32Array {
  let state = 12345;
  return Float32Array.from({ length: patches * 1176 }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}
