import type { Argv } from "yargs";
import { runTraining, type TrainFlags, withTrainFlags } from "./train.ts";

export const command = "sft";
export const describe = "Train by SFT: learn the responses of records that have one";

export function builder(yargs: Argv): Argv<TrainFlags> {
  return withTrainFlags(yargs.usage(`$0 sft --config file.yaml\n\n${describe}.`));
}

export async function handler(flags: TrainFlags): Promise<void> {
  await runTraining("sft", flags, async (config, hooks) => {
    const { trainSft } = await import("../trainer/sft.ts"); // only now: --help and --dry-run need no libtorch
    return trainSft(config, hooks);
  });
}
