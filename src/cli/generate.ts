import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import { ConfigError } from "../errors.ts";
import type { Completion, Sample } from "../types.ts";
import { questionSample, readChats } from "./chat-samples.ts";
import { type ConfigFlags, configToRun, countFlag, withConfigFlags } from "./options.ts";
import { openOutput } from "./output.ts";

export const command = "generate";
export const describe = "Answer questions about videos and images";

interface Flags extends ConfigFlags {
  input?: string;
  question?: string;
  video: string[];
  image: string[];
  count: number;
  output?: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  const files = { type: "string", array: true, nargs: 1, default: [] as string[], defaultDescription: "none" } as const;
  return withConfigFlags(
    yargs
      .usage(
        `$0 generate --config file.yaml (--input chats.jsonl | --question text [--video file] [--image file])\n\n${describe}.\n` +
          "How tokens are chosen and how many: the config's section eval (greedy by default). Prints the texts; with --output writes " +
          'a line {"id", "completions": [{"text", "ids", "logprobs", "finish"}]} for each chat.',
      )
      .option("input", {
        type: "string",
        requiresArg: true,
        describe: 'JSONL file of {"messages": [...]}; - is standard input',
      })
      .option("question", { type: "string", requiresArg: true, describe: "One question, instead of --input" })
      .option("video", { ...files, describe: "A video for --question; may be repeated" })
      .option("image", { ...files, describe: "An image for --question; may be repeated" })
      .option("count", { type: "number", requiresArg: true, default: 1, describe: "Completions of each chat" })
      .option("output", { type: "string", requiresArg: true, describe: "JSONL file to write; - is standard output" })
      .conflicts("input", "question"),
  ) as Argv<Flags>;
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config === undefined) return;
  if (flags.input === undefined && flags.question === undefined)
    throw new ConfigError("generate needs --input or --question");
  if (flags.question === undefined && flags.video.length + flags.image.length > 0)
    throw new ConfigError("--video and --image belong to --question; the chats of --input name their own");
  countFlag("count", flags.count);
  if (flags.count > 1 && config.eval.greedy) {
    throw new ConfigError("--count above 1 would repeat one greedy answer; add --set eval.greedy=false");
  }
  const samples =
    flags.question === undefined
      ? await readChats(flags.input as string, config.data)
      : [questionSample(flags.question, flags.video, flags.image)];
  await generate(config, samples, flags);
}

async function generate(config: Config, samples: readonly Sample[], { count, output: file }: Flags): Promise<void> {
  const { openModel, openPipeline, applyDevice } = await import("../trainer/assemble.ts");
  applyDevice(config);
  using model = openModel(config);
  const { loader, sampler, close } = await openPipeline(config, model);
  const { maxNewTokens, temperature, topK, topP, greedy, batchSize } = config.eval;
  try {
    using output = file === undefined ? undefined : openOutput(file);
    for (let start = 0; start < samples.length; start += batchSize) {
      loader.prefetch(samples.slice(start, start + 2 * batchSize));
      const loaded = await Promise.all(samples.slice(start, start + batchSize).map((sample) => loader.load(sample)));
      const prompts = loaded.filter((prompt) => prompt !== null);
      const groups = await sampler.rolloutGroups(prompts, {
        groupSize: count,
        maxNewTokens,
        temperature,
        topK,
        topP,
        greedy,
        seed: config.seed,
        step: 0,
      });
      for (const { prompt, completions } of groups) {
        if (output !== undefined) output.writeLine({ id: prompt.sample.id, completions: completions.map(record) });
        else for (const { text } of completions) process.stdout.write(`${text}\n`);
      }
    }
  } finally {
    await close();
  }
}

function record({ text, ids, logprobs, finish }: Completion) {
  return { text, ids: [...ids], logprobs: [...logprobs], finish };
}
