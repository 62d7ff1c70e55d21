import path from "node:path";
import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import { runAblation } from "../experiment/ablation.ts";
import { ablationText, writeAblationResults } from "../experiment/ablation-report.ts";
import { readAblation } from "../experiment/ablation-spec.ts";
import { ablationTables } from "../experiment/ablation-tables.ts";
import { type ExperimentFlags, placesOf, slotsOf, stopSignal, withExperimentFlags } from "./experiment.ts";
import { ownProgram } from "./own-program.ts";

export const command = "ablation";
export const describe =
  "Compare named variants of a training over several seeds: means, intervals, paired tests, learning curves";

export function builder(yargs: Argv): Argv<ExperimentFlags> {
  return withExperimentFlags(
    yargs.usage(
      `$0 ablation --config configs/ablations/file.yaml\n\n${describe}.\n` +
        "The same command goes on with an ablation that was stopped; docs/experiments.md describes the file.",
    ),
  );
}

export async function handler(flags: ExperimentFlags): Promise<void> {
  const { set, runDir, parallel } = flags;
  const ablation = readAblation(flags.config, { set, runDir, parallel });
  const first = ablation.jobs[0]?.config as Config;
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  if (flags.dryRun) {
    const { atATime, notes } = placesOf(first, ablation);
    print(`${ablation.jobs.length} runs, ${atATime}, into ${ablation.runDir}`);
    for (const note of notes) print(note);
    for (const { variant, seed, command, from } of ablation.jobs)
      print(`${variant}, seed ${seed}: ${command}${from === undefined ? "" : ` from ${from}`}`);
    return;
  }
  const slots = await slotsOf(first, ablation);
  const stop = stopSignal();
  try {
    const { jobs, finished } = await runAblation(ablation, {
      program: ownProgram(),
      slots,
      signal: stop.signal,
      overwrite: flags.overwrite,
      retryFailed: flags.retryFailed,
      onJob: ({ job, status, seconds, reason }, all) => {
        const over = all.filter((one) => one.status !== "open").length;
        const why = reason === undefined ? "" : `\n${reason}`;
        print(`[${over}/${all.length}] ${job.variant}, seed ${job.seed}: ${status} (${seconds.toFixed(0)} s)${why}`);
      },
    });
    const tables = ablationTables(ablation, jobs);
    const files = writeAblationResults(ablation, jobs, tables);
    print(`\n${ablationText(ablation, tables)}\n`);
    for (const file of files) print(path.relative(".", file));
    if (!finished) throw stop.signal.reason;
  } finally {
    stop.end();
  }
}
