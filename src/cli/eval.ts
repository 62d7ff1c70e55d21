import { writeFileSync } from "node:fs";
import path from "node:path";
import type { Argv } from "yargs";
import { ConfigError } from "../errors.ts";
import { evalTable, summarize } from "../eval/report.ts";
import { runEvaluation } from "./evaluation.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";
import { Progress } from "./progress.ts";

export const command = "eval";
export const describe = "Accuracy on every evaluation set of the config, with confidence intervals";

interface Flags extends ConfigFlags {
  limit?: number;
  overwrite: boolean;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 eval --config file.yaml --set model.path=folder --run-dir folder\n\n${describe}.\n` +
          "Writes answers-<level>.jsonl (sample_id, prompt, problem, solution, response, reward) and results.json to the run folder. " +
          "An evaluation that was stopped goes on where it left off.",
      )
      .option("limit", { type: "number", requiresArg: true, describe: "Ask only the first n questions of each set" })
      .option("overwrite", {
        type: "boolean",
        default: false,
        describe: "Drop another evaluation's answers in the run folder",
      }),
  ) as Argv<Flags>;
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config === undefined) return;
  const { limit, overwrite } = flags;
  if (limit !== undefined && (!Number.isInteger(limit) || limit < 1))
    throw new ConfigError("--limit must be a whole number above 0");
  const progress = new Progress();
  const results = await runEvaluation(config, { folder: config.runDir, progress, limit, overwrite });
  const file = path.join(config.runDir, "results.json");
  writeFileSync(
    file,
    `${JSON.stringify({ model: config.model.path, levels: summarize(results), results }, null, 2)}\n`,
  );
  process.stdout.write(`${evalTable(results)}\n\nwritten to ${file}\n`);
}
