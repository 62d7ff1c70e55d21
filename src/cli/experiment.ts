/** What `sweep` and `ablation` share: their flags, where runs go, and how they are asked to stop. */

import { availableParallelism, constants } from "node:os";
import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import { plannedPlaces, type Slot, slotsFor, visibleGpus } from "../experiment/slots.ts";
import { visibleGpus as gpusOfDriver } from "./gpus.ts";

export interface ExperimentFlags {
  config: string;
  set: string[];
  runDir?: string | undefined;
  parallel?: number | undefined;
  dryRun: boolean;
  overwrite: boolean;
  retryFailed: boolean;
}

export function withExperimentFlags(yargs: Argv): Argv<ExperimentFlags> {
  return yargs
    .option("config", {
      type: "string",
      alias: "c",
      requiresArg: true,
      demandOption: true,
      describe: "YAML file of the experiment",
    })
    .option("set", {
      type: "string",
      array: true,
      nargs: 1,
      default: [] as string[],
      defaultDescription: "none",
      alias: "s",
      describe: "Set one knob of every run: --set trainer.steps=40; may be repeated",
    })
    .option("run-dir", { type: "string", requiresArg: true, describe: "Folder of the experiment" })
    .option("parallel", {
      type: "number",
      requiresArg: true,
      describe: "Runs at the same time; default: one on the CPU, one for each GPU on cuda",
    })
    .option("dry-run", {
      type: "boolean",
      default: false,
      describe: "Check everything, print what would be run, and stop",
    })
    .option("overwrite", { type: "boolean", default: false, describe: "Drop the experiment that the folder holds" })
    .option("retry-failed", { type: "boolean", default: false, describe: "Make runs that failed once more" }) as never;
}

/** Slots for the runs of an experiment. @throws ConfigError where there are too few GPUs for one */
export async function slotsOf(config: Config, spec: Places): Promise<Slot[]> {
  return slotsFor(config, spec, await visibleGpus(config, process.env), availableParallelism());
}

/** An experiment that was asked to stop before its end. */
export class StoppedError extends Error {
  /** As a shell has it: 128 and the signal's number. */
  readonly status: number;

  constructor(signal: NodeJS.Signals) {
    super("stopped; the same command goes on");
    this.status = 128 + constants.signals[signal];
  }
}

interface Places {
  parallel?: number | undefined;
  gpusPerRun: number;
}

/** What a dry run says of them: without libtorch, so that GPUs are counted as the driver's tool sees them. */
export function placesOf(config: Config, spec: Places): ReturnType<typeof plannedPlaces> {
  return plannedPlaces(config, spec, config.device === "cuda" ? gpusOfDriver().length : 0);
}

/**
 * A first SIGINT, SIGTERM or SIGHUP asks to stop, with a StoppedError for a reason; another one, a second later, ends this process and with it the runs.
 */
export function stopSignal(): { signal: AbortSignal; end: () => void } {
  const stop = new AbortController();
  let first: number | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    const stopped = new StoppedError(signal);
    if (first !== undefined && performance.now() - first > 1000) process.exit(stopped.status);
    first ??= performance.now();
    stop.abort(stopped);
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, onSignal);
  const end = () => {
    for (const signal of signals) process.off(signal, onSignal);
  };
  return { signal: stop.signal, end };
}
