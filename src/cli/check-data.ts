import { writeFileSync } from "node:fs";
import type { Argv } from "yargs";
import { isOwn } from "../config/rewards.ts";
import { checkData } from "../data/check-data.ts";
import { reportText } from "../data/check-table.ts";
import { ConfigError, GroveError } from "../errors.ts";
import { goldAnswer } from "../reward/gold.ts";
import { type ConfigFlags, configToRun, countFlag, withConfigFlags } from "./options.ts";
import { Progress } from "./progress.ts";

export const command = "check-data";
export const describe = "Look through all data of a config: records, media, lengths; before a GPU is rented";

interface Flags extends ConfigFlags {
  limit?: number;
  json?: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 check-data --config file.yaml\n\n${describe}.\n` +
          "Reads every record of all training and evaluation sets, decodes every media file once, through the frame cache, and counts tokens. " +
          "It reports all faults, not only the first, and ends with status 1 when a run with this config would stop. Needs no libtorch.",
      )
      .option("limit", { type: "number", requiresArg: true, describe: "Only the first n records of each set" })
      .option("json", { type: "string", requiresArg: true, describe: "Write the whole report to this file too" }),
  ) as Argv<Flags>;
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config === undefined) return;
  const limit = countFlag("limit", flags.limit);
  if (config.data.train.length + Object.keys(config.data.eval).length === 0)
    throw new ConfigError("data.train and data.eval are empty: there is nothing to check");
  const progress = new Progress();
  const report = await checkData(config.data, {
    seed: config.seed,
    modelFolder: config.model.path,
    limit,
    goldOf: goldAnswer,
    trainingIsJudged: config.rewards.some(
      (reward) => !isOwn(reward) && (reward.name === "accuracy" || reward.name === "math"),
    ),
    evaluatesDuringTraining: config.trainer.evalEvery > 0,
    onProgress: ({ part, done, total }) => progress.part({ label: part, done, total }),
  }).finally(() => progress.stop());
  process.stdout.write(`${reportText(report, config.data)}\n`); // first: a file that cannot be written must not cost the report
  if (flags.json !== undefined) writeFileSync(flags.json, `${JSON.stringify(report, null, 2)}\n`);
  if (report.stops.length > 0) {
    throw new GroveError(
      "CHECK",
      `${report.stops.length === 1 ? "a fault" : `${report.stops.length} faults`} would stop a run`,
    );
  }
}
