import path from "node:path";
import type { Argv } from "yargs";
import { dumpConfig } from "../config/load.ts";
import { propose } from "../experiment/search.ts";
import { runSweep } from "../experiment/sweep.ts";
import { paramsText, sweepTable, trialLine, writeSweepResults } from "../experiment/sweep-report.ts";
import { readSweep, type Sweep } from "../experiment/sweep-spec.ts";
import { type ExperimentFlags, placesOf, slotsOf, stopSignal, withExperimentFlags } from "./experiment.ts";
import { ownProgram } from "./own-program.ts";

export const command = "sweep";
export const describe =
  "Try many settings of knobs in runs of their own: grid, random or TPE search, bad ones stopped early";

interface Flags extends ExperimentFlags {
  trials?: number | undefined;
  seed?: number | undefined;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withExperimentFlags(
    yargs.usage(
      `$0 sweep --config configs/sweeps/file.yaml\n\n${describe}.\n` +
        "The same command goes on with a sweep that was stopped; docs/experiments.md describes the file.",
    ),
  )
    .option("trials", { type: "number", requiresArg: true, describe: "Settings to try" })
    .option("seed", { type: "number", requiresArg: true, describe: "Key of the search's draws" });
}

export async function handler(flags: Flags): Promise<void> {
  const { set, runDir, trials: wanted, parallel, seed } = flags;
  const sweep = readSweep(flags.config, { set, runDir, trials: wanted, parallel, seed });
  if (flags.dryRun) {
    process.stdout.write(plan(sweep));
    return;
  }
  const slots = await slotsOf(sweep.configOf({}), sweep);
  const stop = stopSignal();
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  try {
    const { trials, finished } = await runSweep(sweep, {
      program: ownProgram(),
      slots,
      signal: stop.signal,
      overwrite: flags.overwrite,
      retryFailed: flags.retryFailed,
      onTrial: (trial, all) => print(trialLine(sweep, trial, all)),
    });
    const files = writeSweepResults(sweep, trials);
    print(`\n${sweepTable(sweep, trials)}\n`);
    for (const file of files) print(path.relative(".", file));
    if (!finished) throw stop.signal.reason;
  } finally {
    stop.end();
  }
}

/** What would be run: the settings that are known before any result is, and the config they change. */
function plan(sweep: Sweep): string {
  const { search, trials, seeds, objective } = sweep;
  const known = search.kind === "tpe" ? Math.min(search.tpe.startup, trials) : trials;
  const tried: Record<string, unknown>[] = [];
  for (let trial = 0; trial < known; trial++) {
    const params = propose(search, trial, tried, []);
    if (params === undefined) break;
    tried.push(params);
  }
  const config = sweep.configOf({});
  const { atATime, notes } = placesOf(config, sweep);
  const lines = [
    `${trials} trials (${search.kind}) x ${seeds.length} seeds, ${atATime}, into ${sweep.runDir}`,
    ...notes,
    `${objective.goal} ${objective.metric}, mean over ${objective.window} steps`,
    ...tried.map((params, trial) => `trial ${trial}: ${paramsText(params)}`),
    ...(known < trials ? [`trials ${known} to ${trials - 1}: chosen by the outcomes of those before`] : []),
  ];
  return `${lines.map((line) => `# ${line}\n`).join("")}${dumpConfig(config)}`;
}
