import { writeFileSync } from "node:fs";
import path from "node:path";
import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import { ownPlace } from "../distributed/starter.ts";
import { ConfigError } from "../errors.ts";
import { parseShard, type Shard } from "../eval/answers.ts";
import { consistencyTable } from "../eval/consistency.ts";
import { type EvalResults, evalTable, summarize } from "../eval/report.ts";
import { decidingSettings } from "../eval/settings.ts";
import { endWithExperiment } from "./end-with-experiment.ts";
import { claimFolder, type EvaluationOptions, RESULTS_FILE, runEvaluation } from "./evaluation.ts";
import { configOrPlan, countFlag, type PlanFlags, withConfigFlags, withPlanFlags } from "./options.ts";
import { Progress } from "./progress.ts";
import { asRanks, type RankRun } from "./ranks.ts";

export const command = "eval";
export const describe = "Accuracy on every evaluation set of the config, with confidence intervals";

interface Flags extends PlanFlags {
  limit?: number;
  overwrite: boolean;
  processes?: number;
  shard?: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withPlanFlags(
    withConfigFlags(
      yargs
        .usage(
          `$0 eval --config file.yaml --set model.path=folder --run-dir folder\n\n${describe}.\n` +
            "Writes answers-<level>.jsonl (sample_id, prompt, problem, solution, response, reward), results.json and evaluation.json " +
            "(every setting) to the run folder. An evaluation that was stopped asks only what is missing, with any number of processes.",
        )
        .option("limit", { type: "number", requiresArg: true, describe: "Ask only the first n questions of each set" })
        .option("overwrite", {
          type: "boolean",
          default: false,
          describe: "Drop another evaluation's answers in the run folder",
        })
        .option("processes", {
          type: "number",
          requiresArg: true,
          describe:
            "Split the questions among n processes: a GPU each with --device cuda (default: all that are visible), else a share of the CPU's threads",
        })
        .option("shard", {
          type: "string",
          requiresArg: true,
          describe:
            "Ask share k of n only (k/n), e.g. on one of n machines; the command without it adds up all their answers, once all have ended",
        }),
    ),
  ) as Argv<Flags>;
}

export async function handler(flags: Flags): Promise<void> {
  const config = await configOrPlan(flags, "eval");
  if (config === undefined) return;
  await endWithExperiment();
  const { overwrite } = flags;
  const limit = countFlag("limit", flags.limit);
  const processes = countFlag("processes", flags.processes);
  const shard = flags.shard === undefined ? undefined : parseShard(flags.shard);
  if (shard !== undefined && processes !== undefined)
    throw new ConfigError("--shard and --processes exclude each other: a share is asked by one process");
  const asked = { folder: config.runDir, limit, overwrite, shard, processes };
  // A rank that a scheduler has started asks its share; one that is told what to ask does that.
  const isRank = shard === undefined && processes === undefined && ownPlace() !== null;
  if (isRank) return asRanks(config, {}, (run) => evaluateTogether(run, config, asked));
  report(
    config,
    await runEvaluation(config, {
      ...asked,
      progress: new Progress(),
      processes: processes ?? (await oneEachGpu(config, shard)),
    }),
    shard,
  );
}

/** A process for each visible GPU, where none was named. */
async function oneEachGpu({ device }: Config, shard: Shard | undefined): Promise<number> {
  if (device !== "cuda" || shard !== undefined) return 1;
  const { deviceCount } = await import("../torch/cuda.ts");
  return Math.max(1, deviceCount());
}

/** Each rank asks its share of the questions; rank 0 adds up the answers of all. */
async function evaluateTogether({ ranks, config }: RankRun, whole: Config, asked: Asked): Promise<void> {
  const shard = { k: ranks.rank + 1, of: ranks.world };
  const progress = new Progress();
  if (ranks.isFirst) claimFolder(asked.folder, decidingSettings(config), asked.overwrite === true);
  ranks.gather(null); // the folder is this evaluation's
  await runEvaluation(config, { ...asked, shard, progress, overwrite: false });
  ranks.gather(null); // all answers are there
  if (ranks.isFirst) report(whole, await runEvaluation(config, { ...asked, progress, overwrite: false }), undefined);
}

type Asked = Omit<EvaluationOptions, "progress">;

function report(config: Config, results: EvalResults, shard: Shard | undefined): void {
  const benchmarks = Object.fromEntries(Object.entries(config.data.eval).map(([level, set]) => [level, set.benchmark]));
  if (shard !== undefined) {
    process.stdout.write(
      `${evalTable(results)}\n\nshare ${shard.k} of ${shard.of} only; answers in ${config.runDir}\n`,
    );
    return;
  }
  const tallies = Object.entries(results).flatMap(([level, { consistency }]) =>
    consistency ? [[level, consistency]] : [],
  );
  const reasons = tallies.length === 0 ? "" : `${consistencyTable(Object.fromEntries(tallies))}\n\n`;
  const file = path.join(config.runDir, RESULTS_FILE);
  writeFileSync(
    file,
    `${JSON.stringify({ model: config.model.path, levels: summarize(results), results }, null, 2)}\n`,
  );
  process.stdout.write(
    `${evalTable(results, benchmarks)}\n\n${reasons}written to ${file}; settings in evaluation.json\n`,
  );
}
