/** One evaluation of one model, its answers kept in a folder so that it can be stopped and taken up again, by one process or several. */

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { requireData } from "../config/check.ts";
import { dumpConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { BadSamples } from "../data/bad-samples.ts";
import { CheckpointError, ConfigError } from "../errors.ts";
import type { Shard } from "../eval/answers.ts";
import type { EvalOptions, Levels } from "../eval/evaluate.ts";
import { endReports, placeShards, progressReporter, REPORTS, runShards } from "../eval/processes.ts";
import type { EvalResults } from "../eval/report.ts";
import { changedSettings, type DecidingSettings, decidingSettings, type RunSettings } from "../eval/settings.ts";
import { log } from "../log.ts";
import { ownProgram } from "./own-program.ts";
import type { Progress } from "./progress.ts";

/** Settings of an evaluation, beside its answers. */
export const SETTINGS_FILE = "evaluation.json";
/** Figures of an evaluation, written when it is done. */
export const RESULTS_FILE = "results.json";
/** The config that several processes are started with. Not config.yaml: that is a training run's, whose folder this may be. */
const PROCESS_CONFIG = "evaluation.yaml";
const ANSWERS = /^answers-.+\.jsonl$/;

export interface EvaluationOptions {
  /** Where answers-<level>.jsonl and evaluation.json go. */
  folder: string;
  progress: Progress;
  /** Drop the answers of another evaluation that the folder holds, instead of refusing. */
  overwrite?: boolean;
  limit?: number | undefined;
  /** Ask only this share of the questions. */
  shard?: Shard | undefined;
  /** Split the questions among so many processes on this machine. Default 1: this process asks them. */
  processes?: number | undefined;
}

/**
 * Evaluates config.model on every level of config.data.eval. Questions that the folder holds answers for are not asked again, provided
 * the answers came from the same weights, questions and settings; where none is left, no model is loaded.
 * @throws ConfigError when the folder holds answers of another evaluation and `overwrite` is not set
 */
export async function runEvaluation(config: Config, options: EvaluationOptions): Promise<EvalResults> {
  requireData(config, "eval");
  if (!existsSync(config.model.path)) throw new CheckpointError(config.model.path, "no such folder (model.path)");
  claimFolder(options.folder, decidingSettings(config), options.overwrite === true);
  const { countAnswers, openQuestions, readLevels } = await import("../eval/evaluate.ts");
  const bad = new BadSamples(config.data); // one count over records and media
  const levels = await readLevels(config, bad);
  const { folder, limit, shard, progress } = options;
  const onProgress = progressReporter() ?? barOf(progress);
  const { consistency } = config.eval;
  const asked: EvalOptions = { folder, limit, shard, consistency, onProgress };
  try {
    if (openQuestions(levels, asked) === 0) return countAnswers(levels, asked);
    if ((options.processes ?? 1) > 1) {
      await evaluateInProcesses(config, levels, options);
      return countAnswers(levels, asked);
    }
    return await evaluateHere(config, levels, asked, bad);
  } finally {
    progress.stop();
    endReports();
  }
}

async function evaluateHere(
  config: Config,
  levels: Levels,
  options: EvalOptions,
  bad: BadSamples,
): Promise<EvalResults> {
  const { evaluateLevels } = await import("../eval/evaluate.ts");
  const { applyDevice, openModel, openPipeline } = await import("../trainer/assemble.ts");
  const { watchedProgress } = await import("./watched-progress.ts");
  const { shard } = options;
  using _watch = watchedProgress(config, { who: shard === undefined ? "" : `share ${shard.k} of ${shard.of}` });
  const { shareHostMemory } = await import("../torch/host-memory.ts");
  if (process.env[REPORTS] !== undefined && shard !== undefined) shareHostMemory(shard.of); // all shares are asked here
  applyDevice(config);
  await recordRun(config, options.folder as string);
  using model = openModel(config);
  const { loader, sampler, close } = await openPipeline(config, model, bad);
  try {
    const results = await evaluateLevels(levels, { config, loader, sampler }, options);
    return results as EvalResults; // null only for a caller that asks it to stop
  } finally {
    await close();
  }
}

/** The same command once per share, each with the resolved config and a device or threads of its own. */
async function evaluateInProcesses(
  config: Config,
  levels: Levels,
  { folder, limit, processes = 1, progress }: EvaluationOptions,
): Promise<void> {
  const gpus = config.device === "cpu" ? 0 : (await import("../torch/cuda.ts")).deviceCount();
  const file = path.join(folder, PROCESS_CONFIG);
  writeFileSync(file, dumpConfig({ ...config, runDir: folder }));
  const { program, args: own } = ownProgram();
  const limits = limit === undefined ? [] : ["--limit", String(limit)];
  const shards = placeShards(config, processes, gpus).map(({ device, threads }, index) => {
    const shard = { k: index + 1, of: processes };
    const knobs = ["--config", file, "--device", device, "--set", `threads=${threads}`];
    const args = [...own, "eval", ...knobs, "--shard", `${shard.k}/${shard.of}`, ...limits];
    return { shard, program, args };
  });
  const bar = barOf(progress);
  // Shares that have not reported yet count in the total too.
  await runShards(shards, ({ level, done }) =>
    bar({ level, done, total: Math.min(limit ?? Number.POSITIVE_INFINITY, levels[level]?.length ?? done) }),
  );
  const settings = readSettings(folder);
  if (settings?.ran === undefined) return;
  const ran = { ...settings.ran, device: config.device, threads: config.threads, processes };
  writeSettings(folder, { ...settings, ran });
}

function barOf(progress: Progress): NonNullable<EvalOptions["onProgress"]> {
  return ({ level, done, total }) => progress.part({ label: `eval ${level}`, done, total });
}

/** Takes a folder for one evaluation: the settings in it must be these, or it must hold no answers. */
export function claimFolder(folder: string, decides: DecidingSettings, overwrite: boolean): void {
  mkdirSync(folder, { recursive: true });
  const before = readSettings(folder);
  const changes =
    before === undefined
      ? [`${SETTINGS_FILE} is missing, or of another version`]
      : changedSettings(before.decides, decides);
  const answers = readdirSync(folder).filter((name) => ANSWERS.test(name));
  if (changes.length === 0) return;
  if (answers.length > 0) {
    if (!overwrite) {
      const shown = changes.slice(0, 6).map((change) => `\n  ${change}`);
      throw new ConfigError(
        `runDir: ${folder} holds the answers of another model or other settings; set another runDir or --overwrite${shown.join("")}`,
      );
    }
    for (const name of answers) rmSync(path.join(folder, name));
  }
  rmSync(path.join(folder, RESULTS_FILE), { force: true }); // of what was evaluated here before
  writeSettings(folder, { decides });
}

/** What evaluation.json holds. */
export interface Settings {
  decides: DecidingSettings;
  ran?: RunSettings;
}

/** Adds to evaluation.json what this process runs on; says so where earlier answers come from other versions. */
async function recordRun(config: Config, folder: string): Promise<void> {
  const { deviceName, versions } = await import("../torch/cuda.ts");
  const { runSettings } = await import("../eval/settings.ts");
  const { torch, threads } = versions();
  const index = Number(/^cuda:(\d+)$/.exec(config.device)?.[1] ?? 0);
  const name = config.device === "cpu" ? "cpu" : deviceName(index);
  const ran = await runSettings(config, { torch, threads, deviceName: name });
  const before = readSettings(folder);
  if (before?.ran !== undefined) {
    for (const change of changedSettings(before.ran.versions, ran.versions))
      log.warn(`evaluation goes on with ${change}`);
  }
  writeSettings(folder, { decides: before?.decides ?? decidingSettings(config), ran });
}

/** The settings beside a folder's answers; undefined where there are none that can be read. */
export function readSettings(folder: string): Settings | undefined {
  try {
    const settings = JSON.parse(readFileSync(path.join(folder, SETTINGS_FILE), "utf8")) as Partial<Settings>;
    return settings.decides === undefined ? undefined : (settings as Settings);
  } catch {
    return undefined;
  }
}

/** In one move: processes that share a folder read it while another writes. */
function writeSettings(folder: string, settings: Settings): void {
  const temporary = path.join(folder, `${SETTINGS_FILE}.${process.pid}.tmp`);
  writeFileSync(temporary, `${JSON.stringify(settings, null, 2)}\n`);
  renameSync(temporary, path.join(folder, SETTINGS_FILE));
}
