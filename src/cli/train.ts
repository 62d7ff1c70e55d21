/** What `grpo` and `sft` share: flags, progress, the closing lines. */

import path from "node:path";
import type { Argv } from "yargs";
import { requireData } from "../config/check.ts";
import type { Config } from "../config/schema.ts";
import { metricsAt } from "../experiment/objective.ts";
import { readMetrics } from "../trainer/run-folder.ts";
import type { TrainHooks, TrainResult } from "../trainer/training-loop.ts";
import { endWithExperiment } from "./end-with-experiment.ts";
import { configOrPlan, countFlag, type PlanFlags, withConfigFlags, withPlanFlags } from "./options.ts";
import { Progress } from "./progress.ts";

export interface TrainFlags extends PlanFlags {
  resume?: boolean; // no default: yargs would take it for a conflict
  overwrite?: boolean;
  json: boolean;
  jsonWindow: number;
  maxRestarts?: number | undefined;
}

export function withTrainFlags(yargs: Argv): Argv<TrainFlags> {
  return withPlanFlags(withConfigFlags(yargs))
    .option("resume", {
      type: "boolean",
      describe: "Go on from the newest checkpoint in the run folder; from the start where there is none",
    })
    .option("nproc", {
      type: "number",
      requiresArg: true,
      describe: "Processes (ranks) on this machine; default: one for each GPU on cuda, else 1",
    })
    .option("max-restarts", {
      type: "number",
      requiresArg: true,
      describe: "Start ranks that have failed again, from the newest checkpoint, so many times at most; default: 0",
    })
    .option("overwrite", { type: "boolean", describe: "Replace the run that the folder holds" })
    .option("json", {
      type: "boolean",
      default: false,
      describe: "End with one line of JSON on standard output: what became of the run, and its metrics",
    })
    .option("json-window", {
      type: "number",
      requiresArg: true,
      default: 10,
      describe: "With --json: metrics are means over so many steps up to the last one that has them",
    })
    .conflicts("resume", "overwrite") as unknown as Argv<TrainFlags>;
}

/** Runs a training command from its flags. Returns normally when a signal stopped the run, which has then been saved. */
export async function runTraining(
  label: "grpo" | "sft",
  flags: TrainFlags,
  train: (config: Config, hooks: TrainHooks) => Promise<TrainResult>,
): Promise<void> {
  countFlag("json-window", flags.jsonWindow);
  countFlag("max-restarts", flags.maxRestarts, 0);
  const config = await configOrPlan(flags, label);
  if (config === undefined) return;
  requireData(config, "train");
  await endWithExperiment();
  const { asRanks } = await import("./ranks.ts"); // only now: --dry-run needs none of it
  await asRanks(config, flags, async ({ ranks, config, report, fail }) => {
    const progress = new Progress();
    const drawn = ranks.isFirst ? progressHooks(label, progress) : {};
    try {
      const result = await train(config, {
        resume: flags.resume === true,
        overwrite: flags.overwrite === true,
        ranks,
        ...drawn,
        onOpen: () => report({}),
        onFailure: fail,
        onProgress: (made) => {
          report({ step: made.step });
          drawn.onProgress?.(made);
        },
      });
      progress.stop();
      if (ranks.isFirst) process.stdout.write(`${flags.json ? jsonLine(label, flags, result) : closingLine(result)}\n`);
    } finally {
      progress.stop();
    }
  });
}

/** Hooks that draw a training run and the evaluations within it. */
export function progressHooks(label: string, progress: Progress): Pick<TrainHooks, "onProgress" | "onEvalProgress"> {
  return {
    onProgress: ({ step, steps, metrics, etaS }) => progress.step({ label, done: step, total: steps, etaS, metrics }),
    onEvalProgress: ({ level, done, total }) => progress.part({ label: `eval ${level}`, done, total }),
  };
}

/** For whoever started the run: `{"command":"grpo","finished":true,"step":200,...,"metrics":{"reward/mean":1.21,...}}`. */
export function jsonLine(
  command: string,
  { jsonWindow }: Pick<TrainFlags, "jsonWindow">,
  { finished, step, runDir, finalDir }: TrainResult,
): string {
  const metrics = metricsAt(readMetrics(path.join(runDir, "metrics.jsonl")), jsonWindow);
  return JSON.stringify({ command, finished, step, runDir, finalDir, window: jsonWindow, metrics });
}

function closingLine({ finished, step, runDir, finalDir }: TrainResult): string {
  if (finished)
    return `${step} ${step === 1 ? "step" : "steps"} made; ${finalDir === null ? `metrics are in ${runDir}` : `the trained model is in ${finalDir}`}`;
  return `stopped after step ${step}; the same command with --resume goes on from ${runDir}`;
}
