import type { Argv } from "yargs";
import { runTraining, type TrainFlags, withTrainFlags } from "./train.ts";

export const command = "grpo";
export const describe = "Train by GRPO: sample groups of completions, score them, update the policy";

export function builder(yargs: Argv): Argv<TrainFlags> {
  return withTrainFlags(yargs.usage(`$0 grpo --config file.yaml\n\n${describe}.`));
}

export async function handler(flags: TrainFlags): Promise<void> {
  await runTraining("grpo", flags, async (config, hooks) => {
    const { trainGrpo } = await import("../trainer/grpo.ts"); // only now: --help and --dry-run need no libtorch
    return trainGrpo(config, hooks);
  });
}
