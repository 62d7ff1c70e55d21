import { mkdirSync } from "node:fs";
import path from "node:path";
import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Prompt, Sample, VisionInput } from "../types.ts";
import { readChats, wholeChat } from "./chat-samples.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";

export const command = "inspect";
export const describe = "Write what the model is given for a chat: token ids, positions, pixels";

interface Flags extends ConfigFlags {
  input: string;
  output: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 inspect --config file.yaml --input chats.jsonl --output inputs.safetensors\n\n${describe}, into one safetensors file.\n` +
          "Tensors, named as transformers' processor names them: input_ids int64 [1, L], position_ids int64 [3, 1, L], " +
          "pixel_values and pixel_values_videos float32 [patches, values], image_grid_thw and video_grid_thw int64 [n, 3]. " +
          "With more than one chat the names begin with the chat's number: 0.input_ids. " +
          "Where the last message is the user's, the assistant's turn is opened.",
      )
      .option("input", { type: "string", requiresArg: true, default: "-", describe: "JSONL file; - is standard input" })
      .option("output", { type: "string", requiresArg: true, demandOption: true, describe: "safetensors file" }),
  );
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config !== undefined) await inspectChats(config, await readChats(flags.input, config.data), flags.output);
}

async function inspectChats(config: Config, samples: readonly Sample[], file: string): Promise<void> {
  const { writeSafetensors } = await import("../model/safetensors.ts");
  const { Processor } = await import("../data/processor.ts");
  const { PromptLoader } = await import("../data/loader.ts");
  const { fromArray } = await import("../torch/tensor.ts");
  const processor = await Processor.load(config.model.path, config.data);
  const loader = new PromptLoader({ processor, config: config.data });
  const tensors: { name: string; tensor: Tensor }[] = [];
  try {
    for (const [i, sample] of samples.entries()) {
      const prompt = await loader.load({ ...sample, messages: wholeChat(sample, { required: false }) });
      if (prompt === null) continue;
      // The processor always opens the assistant's turn; a chat that ends with it must not have a second one.
      const surplus = sample.response === undefined ? 0 : processor.tokenizer.encode("<|im_start|>assistant\n").length;
      const prefix = samples.length === 1 ? "" : `${i}.`;
      for (const [name, values, shape] of modelInputs(prompt, surplus)) {
        const dtype = values instanceof Float32Array ? "float32" : "int64";
        tensors.push({ name: prefix + name, tensor: fromArray(values, shape, { dtype }) });
      }
    }
    mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
    writeSafetensors(
      file,
      tensors.map(({ name, tensor }) => ({ name, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor })),
    );
  } finally {
    for (const { tensor } of tensors) tensor.free();
    await loader.close();
  }
  process.stdout.write(
    `${tensors.map(({ name, tensor }) => `${name} ${tensor.dtype} [${tensor.shape.join(", ")}]`).join("\n")}\n`,
  );
}

type Input = [name: string, values: Float32Array | number[], shape: number[]];

/** A prompt's tensors without its last `surplus` tokens; what it has no media for is left out. */
function modelInputs(prompt: Prompt, surplus: number): Input[] {
  const all = prompt.inputIds.length;
  const length = all - surplus;
  const positions = [0, 1, 2].flatMap((axis) => [...prompt.positions.subarray(axis * all, axis * all + length)]);
  return [
    ["input_ids", [...prompt.inputIds.subarray(0, length)], [1, length]],
    ["position_ids", positions, [3, 1, length]],
    ...visionInputs("pixel_values", "image_grid_thw", prompt.images),
    ...visionInputs("pixel_values_videos", "video_grid_thw", prompt.videos),
  ];
}

function visionInputs(pixelName: string, gridName: string, inputs: readonly VisionInput[]): Input[] {
  if (inputs.length === 0) return [];
  const rows = inputs.reduce((sum, { grid: [t, h, w] }) => sum + t * h * w, 0);
  const values = new Float32Array(inputs.reduce((sum, { pixels }) => sum + pixels.length, 0));
  let at = 0;
  for (const { pixels } of inputs) {
    values.set(pixels, at);
    at += pixels.length;
  }
  return [
    [pixelName, values, [rows, values.length / rows]],
    [gridName, inputs.flatMap(({ grid }) => [...grid]), [inputs.length, 3]],
  ];
}
