import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Argv } from "yargs";
import { dumpConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { datasetPaths, renderDataset } from "../data/rendered/make-dataset.ts";
import { wilsonInterval } from "../eval/intervals.ts";
import { runPlot } from "../eval/plot.ts";
import { type EvalResults, summarize } from "../eval/report.ts";
import { alignTable } from "../eval/table.ts";
import type { TrainHooks, TrainResult } from "../trainer/training-loop.ts";
import { runEvaluation } from "./evaluation.ts";
import { type ConfigFlags, configFrom, withConfigFlags } from "./options.ts";
import { duration, Progress } from "./progress.ts";
import { type Stage, Stages } from "./stages.ts";
import { progressHooks } from "./train.ts";

export const command = "quickstart";
export const describe = "From nothing to a trained policy: render videos, draw a small model, SFT, GRPO, evaluate each";

export function builder(yargs: Argv): Argv<ConfigFlags> {
  return withConfigFlags(
    yargs.usage(
      `$0 quickstart\n\n${describe}.\n` +
        "Knobs: configs/quickstart.yaml, then configs/quickstart-sft.yaml or -grpo.yaml; --set sft.trainer.steps=50 is for the SFT run " +
        "alone, --set grpo.… for GRPO, anything else for both. Stages that the run folder holds already, made with the same knobs, are skipped.",
    ),
  );
}

/** The configs of the three models' runs, all paths below one folder. */
export interface QuickstartConfigs {
  root: string;
  vanilla: Config;
  sft: Config;
  grpo: Config;
}

export async function handler(flags: ConfigFlags): Promise<void> {
  const configs = quickstartConfigs(flags);
  if (flags.dryRun) {
    for (const name of ["sft", "grpo"] as const) process.stdout.write(`# ${name}\n${dumpConfig(configs[name])}`);
    return;
  }
  const results = await runQuickstart(configs);
  if (results === undefined) return;
  const { seconds, models } = results;
  const summaryFile = path.join(configs.root, "summary.json");
  const summary = Object.fromEntries(Object.entries(models).map(([name, levels]) => [name, summarize(levels)]));
  writeFileSync(summaryFile, `${JSON.stringify({ ...summary, seed: configs.grpo.seed, seconds }, null, 2)}\n`);
  const plotFile = await writePlot(configs);
  const times = Object.entries(seconds).map(([stage, s]) => `${stage} ${duration(s)}`);
  const total = duration(Object.values(seconds).reduce((sum, s) => sum + s, 0));
  process.stdout.write(`\n${resultTable(models)}\n\ntime: ${times.join(", ")}; in all ${total}\n`);
  process.stdout.write(`summary: ${summaryFile}\nplot: ${plotFile}\n`);
}

/**
 * Resolves the three configs. Data, model and run folders lie below the run folder, so one quickstart never touches another's.
 * @throws ConfigError as `loadConfig` does
 */
export function quickstartConfigs(flags: ConfigFlags): QuickstartConfigs {
  const file = (name: string) => fileURLToPath(new URL(`../../configs/${name}.yaml`, import.meta.url));
  const stageOf = (assignment: string) => /^(sft|grpo)\./.exec(assignment)?.[1];
  const load = (stage: "sft" | "grpo") => {
    const set = flags.set.filter((assignment) => (stageOf(assignment) ?? stage) === stage);
    const own = { ...flags, set: set.map((assignment) => assignment.replace(/^(sft|grpo)\./, "")) };
    return configFrom(own, { files: [file("quickstart"), file(`quickstart-${stage}`)] });
  };
  const root = load("sft").runDir;
  const dataset = datasetPaths(path.join(root, "data"));
  const questions = { format: "seed-bench-r1", mediaRoot: dataset.folder } as const;
  const evalSets = Object.fromEntries(
    Object.entries(dataset.validation).map(([level, file]) => [level, { file, ...questions }]),
  );
  const below = (
    config: Config,
    name: string,
    model: Partial<Config["model"]>,
    train: Config["data"]["train"],
  ): Config => ({
    ...config,
    runDir: path.join(root, name),
    model: { ...config.model, ...model },
    data: { ...config.data, train, eval: evalSets },
  });
  const fresh = { path: path.join(root, "model"), init: "random" } as const;
  const taught = { path: path.join(root, "sft", "final"), init: "pretrained" } as const;
  const records = { file: dataset.sft, format: "seed-bench-r1-sft", mediaRoot: dataset.folder } as const;
  return {
    root,
    vanilla: below(load("sft"), "vanilla", fresh, []),
    sft: below(load("sft"), "sft", fresh, [records]),
    grpo: below(load("grpo"), "grpo", taught, [{ file: dataset.training, ...questions }]),
  };
}

type Models = Record<"vanilla" | "sft" | "grpo", EvalResults>;

/** Runs every stage that is not done yet; undefined when a signal stopped a training run. */
async function runQuickstart(
  configs: QuickstartConfigs,
): Promise<{ models: Models; seconds: Record<string, number> } | undefined> {
  const { root, vanilla, sft, grpo } = configs;
  mkdirSync(root, { recursive: true });
  using progress = new Progress();
  const stages = new Stages(path.join(root, "stages"), (line) => {
    progress.stop();
    process.stdout.write(`${line}\n`);
  });
  const evaluate = (name: string, config: Config) => () =>
    runEvaluation(config, { folder: path.join(root, name), progress, overwrite: true });
  const train = (config: Config, label: string, run: (config: Config, hooks: TrainHooks) => Promise<TrainResult>) => {
    return async (stage: Stage) => {
      const begin = stage.begun ? { resume: true } : { overwrite: true };
      const result = await run(config, { ...begin, ...progressHooks(label, progress) });
      if (!result.finished)
        stages.halt(`stopped after step ${result.step} and saved; the same command goes on from there`);
      return { step: result.step };
    };
  };

  await stages.run("data set", { seed: sft.seed, rendered: sft.rendered }, async () => {
    const options = { seed: sft.seed, ...sft.rendered };
    const { rendered } = await renderDataset(path.join(root, "data"), options, (tick) =>
      progress.part({ label: "videos", ...tick }),
    );
    return { rendered };
  });
  await stages.run("model", sft.tinyModel, async () => {
    const { renderedCorpus } = await import("../data/rendered/corpus.ts");
    const { writeModelFolder } = await import("../data/tiny-model-folder.ts");
    return writeModelFolder(vanilla.model.path, { spec: sft.tinyModel, corpus: renderedCorpus() });
  });
  const vanillaResults = await stages.run("vanilla eval", evalKnobs(vanilla), evaluate("vanilla", vanilla));
  await stages.run(
    "sft",
    trainKnobs(sft),
    train(sft, "sft", async (config, hooks) => (await import("../trainer/sft.ts")).trainSft(config, hooks)),
  );
  const afterSft = { ...sft, model: grpo.model };
  const sftResults = await stages.run("sft eval", evalKnobs(afterSft), evaluate("sft-eval", afterSft));
  await stages.run(
    "grpo",
    trainKnobs(grpo),
    train(grpo, "grpo", async (config, hooks) => (await import("../trainer/grpo.ts")).trainGrpo(config, hooks)),
  );
  const afterGrpo = { ...grpo, model: { ...grpo.model, path: path.join(root, "grpo", "final") } };
  const grpoResults = await stages.run("grpo eval", evalKnobs(afterGrpo), evaluate("grpo-eval", afterGrpo));
  if (stages.halted) return undefined;
  return {
    models: { vanilla: vanillaResults, sft: sftResults, grpo: grpoResults } as Models,
    seconds: stages.seconds,
  };
}

function evalKnobs({ seed, dtype, model, data, eval: evaluation, compat: { firstLetterReward } }: Config) {
  return { seed, dtype, model, data, evaluation, firstLetterReward };
}

function trainKnobs({
  device: _device,
  threads: _threads,
  runDir: _runDir,
  rendered: _r,
  tinyModel: _m,
  ...knobs
}: Config) {
  return knobs;
}

async function writePlot({ root, sft, grpo }: QuickstartConfigs): Promise<string> {
  const { readMetrics } = await import("../trainer/run-folder.ts");
  const lines = (config: Config) => readMetrics(path.join(config.runDir, "metrics.jsonl"));
  const file = path.join(root, "plot.svg");
  writeFileSync(file, runPlot({ SFT: lines(sft), GRPO: lines(grpo) }, `Quickstart, seed ${grpo.seed}`));
  return file;
}

/** Models by row, levels by column, a cell `71.7 % (172/240), 65.6-77.0`. */
export function resultTable(models: Record<string, EvalResults>): string {
  const names: Record<string, string> = { vanilla: "Vanilla", sft: "SFT", grpo: "GRPO" };
  const levels = [...new Set(Object.values(models).flatMap((results) => Object.keys(results)))];
  const cell = (result: EvalResults[string] | undefined) => {
    if (result === undefined || result.n === 0) return "-";
    const [low, high] = wilsonInterval(result.correct, result.n).map((bound) => (100 * bound).toFixed(1));
    return `${((100 * result.correct) / result.n).toFixed(1)} % (${result.correct}/${result.n}), ${low}-${high}`;
  };
  const rows = Object.entries(models).map(([model, results]) => [
    names[model] ?? model,
    ...levels.map((level) => cell(results[level])),
  ]);
  return alignTable([["accuracy, 95 % interval", ...levels], ...rows]);
}
