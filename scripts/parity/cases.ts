/**
 * What the parity tool compares: random model shapes and inputs, all a function of the seed. Model folders are written without weights
 * (the Python side draws those); pictures and clips are rendered with ffmpeg.
 */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { encodeWithFfmpeg } from "../../src/data/ffmpeg.ts";
import { type TinyModelSpec, writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { pick, randomInt, uniform } from "../../src/random.ts";
import type { ChatMessage } from "../../src/types.ts";

export interface Shape {
  name: string;
  spec: TinyModelSpec;
  mropeSection: [t: number, h: number, w: number];
  /** config.json as Qwen released it; else as transformers writes it today (text_config, rope_parameters). */
  flatConfig: boolean;
  /** Weights in several files with an index. */
  sharded: boolean;
}

const vision = { visionWidth: 32, visionLayers: 2, visionHeads: 2 };

/** Heads of 16 unless said otherwise: 8 frequencies for time, height and width. */
const TINY: Shape[] = [
  {
    name: "gqa 2:1, untied",
    spec: {
      hiddenSize: 64,
      intermediateSize: 96,
      layers: 3,
      heads: 4,
      kvHeads: 2,
      ...vision,
      tieWordEmbeddings: false,
    },
    mropeSection: [2, 3, 3],
    flatConfig: true,
    sharded: true,
  },
  {
    name: "gqa 1:1, tied",
    spec: { hiddenSize: 64, intermediateSize: 80, layers: 2, heads: 4, kvHeads: 4, ...vision, tieWordEmbeddings: true },
    mropeSection: [2, 3, 3],
    flatConfig: false,
    sharded: false,
  },
  {
    name: "gqa 7:1, untied",
    spec: {
      hiddenSize: 112,
      intermediateSize: 72,
      layers: 2,
      heads: 7,
      kvHeads: 1,
      ...vision,
      tieWordEmbeddings: false,
    },
    mropeSection: [2, 3, 3],
    flatConfig: false,
    sharded: true,
  },
  {
    name: "m-rope 9:2:5, tied", // heads of 32
    spec: {
      hiddenSize: 64,
      intermediateSize: 96,
      layers: 2,
      heads: 2,
      kvHeads: 1,
      visionWidth: 48,
      visionLayers: 3,
      visionHeads: 3,
      visionMlpRatio: 2,
      tieWordEmbeddings: true,
      ropeTheta: 10_000,
    },
    mropeSection: [9, 2, 5],
    flatConfig: true,
    sharded: false,
  },
];

/** Heads of 128 and 80 as in the released models, so that the kernels are those of a real run. */
const MEDIUM: Shape[] = [
  {
    name: "medium, gqa 4:1",
    spec: {
      hiddenSize: 1024,
      intermediateSize: 2816,
      layers: 8,
      heads: 8,
      kvHeads: 2,
      visionWidth: 320,
      visionLayers: 4,
      visionHeads: 4,
      tieWordEmbeddings: false,
    },
    mropeSection: [16, 24, 24],
    flatConfig: true,
    sharded: true,
  },
];

export const SHAPES: Record<string, Shape[]> = { tiny: TINY, medium: MEDIUM };

export interface Input {
  name: string;
  messages: ChatMessage[];
  /** Its video has more time steps than merged patches along its longer side: transformers 5 goes on at another position than Qwen2-VL did. */
  corner: boolean;
}

/** Pictures [width, height] and clips [width, height, frames, frames per second]; odd grids, and sizes that the processor must change. */
const PICTURES: Record<string, [number, number]> = { wide: [131, 97], tall: [61, 150], small: [30, 33] };
const CLIPS: Record<string, [number, number, number, number]> = {
  walk: [112, 84, 8, 4],
  turn: [90, 146, 7, 5],
  corner: [28, 28, 24, 8],
};

/** Renders the media and words the questions of all inputs. `scale` enlarges pictures and clips. */
export async function makeInputs(folder: string, seed: number, scale: number): Promise<Input[]> {
  const media = join(folder, "media");
  await mkdir(media, { recursive: true });
  const size = (n: number) => Math.round(n * scale);
  for (const [name, [width, height]] of Object.entries(PICTURES))
    await writePicture(join(media, `${name}.png`), size(width), size(height), seed, name);
  for (const [name, [width, height, frames, rate]] of Object.entries(CLIPS)) {
    const scaled = name === "corner" ? [width, height] : [size(width), size(height)];
    await writeClip(join(media, `${name}.mp4`), scaled[0]!, scaled[1]!, frames, rate, seed, name);
  }
  const image = (name: string) => ({ type: "image" as const, image: join(media, `${name}.png`) });
  const video = (name: string) => ({ type: "video" as const, video: join(media, `${name}.mp4`) });
  const text = (key: string) => ({ type: "text" as const, text: question(seed, key) });
  const ask = (name: string, content: ChatMessage["content"], corner = false): Input => ({
    name,
    messages: [{ role: "user", content }],
    corner,
  });
  return [
    {
      name: "text, three turns",
      messages: [
        { role: "system", content: "Answer briefly. Größe 数字 👩‍👩‍👧" },
        { role: "user", content: question(seed, "first") },
        { role: "assistant", content: "<think> so </think><answer>B</answer>" },
        { role: "user", content: [text("second")] },
      ],
      corner: false,
    },
    ask("one image", [image("wide"), text("image")]),
    ask("three images", [image("wide"), text("a"), image("tall"), image("small"), text("b")]),
    ask("one video", [video("walk"), text("video")]),
    ask("two videos", [video("turn"), text("a"), video("walk"), text("b")]),
    ask("video and image", [video("walk"), image("tall"), text("both")]),
    ask("a long thin video", [video("corner"), text("corner")], true),
  ];
}

/** Writes everything but the weights. @returns the ids of ordinary tokens, which random completions are made of */
export async function makeModelFolder(folder: string, shape: Shape, inputs: readonly Input[]): Promise<void> {
  const corpus = inputs.flatMap(({ messages }) =>
    messages.flatMap(({ content }) =>
      typeof content === "string" ? [content] : content.flatMap((part) => (part.type === "text" ? [part.text] : [])),
    ),
  );
  await writeModelFolder(folder, { spec: shape.spec, corpus });
  const path = join(folder, "config.json");
  const config = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
  config.rope_scaling = { type: "mrope", mrope_section: shape.mropeSection };
  await writeFile(path, `${JSON.stringify(config, null, 2)}\n`);
}

const WORDS = "put take open the cup bowl onion knife stir pan now which next should I in order to bake a pie?".split(
  " ",
);

function question(seed: number, key: string): string {
  const words = Array.from({ length: 4 + randomInt(8, seed, key, "length") }, (_, i) => pick(WORDS, seed, key, i));
  return `${words.join(" ")}\nA. ${pick(WORDS, seed, key, "A")}\nB. 3.14 x ${randomInt(100, seed, key, "B")}\n`;
}

/** Smooth colours with noise and an edge, all drawn from the seed: uint8 RGB of one frame. */
function paint(width: number, height: number, time: number, seed: number, key: string): Uint8Array {
  const out = new Uint8Array(width * height * 3);
  const [a, b, c] = [0, 1, 2].map((i) => 2 + 6 * uniform(seed, key, "wave", i)) as [number, number, number];
  let noise = randomInt(2 ** 31, seed, key, "noise") | 1;
  for (let y = 0, o = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++, o++) {
        noise = (Math.imul(noise, 1103515245) + 12345) & 0x7fffffff;
        const wave = Math.sin((a * x) / width + (b * y) / height + c * channel + 0.7 * time);
        const edge = (x + 3 * time) % width < width / 3 ? 40 : 0;
        out[o] = Math.max(0, Math.min(255, 110 + 80 * wave + edge + (noise >> 24) / 4));
      }
    }
  }
  return out;
}

async function writePicture(file: string, width: number, height: number, seed: number, key: string): Promise<void> {
  const raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-i", "pipe:0"];
  await encodeWithFfmpeg(["-loglevel", "error", "-y", ...raw, file], paint(width, height, 0, seed, key));
}

async function writeClip(
  file: string,
  width: number,
  height: number,
  frames: number,
  rate: number,
  seed: number,
  key: string,
): Promise<void> {
  const raw = Buffer.concat(Array.from({ length: frames }, (_, time) => paint(width, height, time, seed, key)));
  const input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-r", `${rate}`, "-i", "pipe:0"];
  const codec = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "6", "-pix_fmt", "yuv444p"];
  await encodeWithFfmpeg(["-loglevel", "error", "-y", ...input, ...codec, file], raw);
}
