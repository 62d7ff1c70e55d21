import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import type { Sample } from "../types.ts";
import { readChats, wholeChat } from "./chat-samples.ts";
import { lastTurnIds } from "./last-turn.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";
import { openOutput } from "./output.ts";

export const command = "score";
export const describe = "Log-probability of every token of the last assistant turn of each chat, or its rewards";

interface Flags extends ConfigFlags {
  input: string;
  output: string;
  rewards: boolean;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 score --config file.yaml --input chats.jsonl\n\n${describe}.\n` +
          'In: lines of {"messages": [...]} whose last message is the assistant\'s. ' +
          'Out: a line {"id": ..., "prompt_ids": [], "completion_ids": [], "logprobs": []} each; natural logarithms at temperature 1. ' +
          'The completion is the turn\'s text and the token that ends it. With --rewards: {"id": ..., "reward": 1.2, "reward_breakdown": {}}; ' +
          "the gold answer is the line's solution.",
      )
      .option("input", { type: "string", requiresArg: true, default: "-", describe: "JSONL file; - is standard input" })
      .option("output", {
        type: "string",
        requiresArg: true,
        default: "-",
        describe: "JSONL file; - is standard output",
      })
      .option("rewards", {
        type: "boolean",
        default: false,
        describe: "What the config's reward functions give, instead of log-probabilities; needs no weights",
      }),
  );
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config === undefined) return;
  const samples = await readChats(flags.input, config.data);
  for (const sample of samples) wholeChat(sample, { required: true });
  if (!flags.rewards) return scoreChats(config, samples, flags.output);
  const { scoreRewards } = await import("./score-rewards.ts");
  await scoreRewards(config, samples, flags.output);
}

async function scoreChats(config: Config, samples: readonly Sample[], outputFile: string): Promise<void> {
  const { openModel, openPipeline, applyDevice } = await import("../trainer/assemble.ts");
  const { packGroups } = await import("../model/packed.ts");
  applyDevice(config);
  using model = openModel(config);
  const { loader, processor, close } = await openPipeline(config, model);
  try {
    using output = openOutput(outputFile);
    for (const sample of samples) {
      const prompt = await loader.load(sample);
      if (prompt === null) continue; // skipped and logged, as data.onBadSample says
      const completion = lastTurnIds(processor.tokenizer, sample);
      using pass = model.pass(packGroups([{ prompt, completions: [completion] }]), { grad: false });
      output.writeLine({
        id: sample.id,
        prompt_ids: [...prompt.inputIds],
        completion_ids: [...completion],
        logprobs: pass.logprobs.toNumbers(),
      });
    }
  } finally {
    await close();
  }
}
