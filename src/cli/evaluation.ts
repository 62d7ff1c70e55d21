/** One evaluation of one model, its answers kept in a folder so that it can be stopped and taken up again. */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { requireData } from "../config/check.ts";
import type { Config } from "../config/schema.ts";
import { CheckpointError, ConfigError } from "../errors.ts";
import type { EvalResults } from "../eval/report.ts";
import type { Progress } from "./progress.ts";

const IDENTITY = "evaluation.json";
const ANSWERS = /^answers-.+\.jsonl$/;

export interface EvaluationOptions {
  /** Where answers-<level>.jsonl go. */
  folder: string;
  progress: Progress;
  /** Drop the answers of another evaluation that the folder holds, instead of refusing. */
  overwrite?: boolean;
  limit?: number | undefined;
}

/**
 * Evaluates config.model on every level of config.data.eval. Questions that the folder holds answers for are not asked again, provided
 * the answers came from the same weights, questions and settings.
 * @throws ConfigError when the folder holds answers of another evaluation and `overwrite` is not set
 */
export async function runEvaluation(config: Config, options: EvaluationOptions): Promise<EvalResults> {
  requireData(config, "eval");
  if (!existsSync(config.model.path)) throw new CheckpointError(config.model.path, "no such folder (model.path)");
  claimFolder(options.folder, identityOf(config), options.overwrite === true);
  const { applyDevice, openModel, openPipeline } = await import("../trainer/assemble.ts");
  const { evaluateLevels, readLevels } = await import("../eval/evaluate.ts");
  const levels = await readLevels(config);
  applyDevice(config);
  using model = openModel(config);
  const { loader, sampler, close } = await openPipeline(config, model);
  try {
    const results = await evaluateLevels(
      levels,
      { config, loader, sampler },
      {
        ...(options.limit === undefined ? {} : { limit: options.limit }),
        fileOf: (level) => path.join(options.folder, `answers-${level}.jsonl`),
        onProgress: ({ level, done, total }) => options.progress.part({ label: `eval ${level}`, done, total }),
      },
    );
    return results as EvalResults; // null only for a caller that asks it to stop
  } finally {
    await close();
    options.progress.stop();
  }
}

function claimFolder(folder: string, identity: string, overwrite: boolean): void {
  mkdirSync(folder, { recursive: true });
  const file = path.join(folder, IDENTITY);
  const before = existsSync(file) ? readFileSync(file, "utf8") : undefined;
  const answers = readdirSync(folder).filter((name) => ANSWERS.test(name));
  if (before !== identity && answers.length > 0) {
    if (!overwrite) {
      throw new ConfigError(
        `runDir: ${folder} holds the answers of another model or other settings; set another runDir or --overwrite`,
      );
    }
    for (const name of answers) rmSync(path.join(folder, name));
  }
  writeFileSync(file, identity);
}

/** Everything that decides an answer; weights and questions by name, size and modification time. */
function identityOf(config: Config): string {
  const { workers: _w, prefetch: _p, cacheDir: _d, cacheGib: _g, train: _t, ...data } = config.data;
  const files = [
    ...readdirSync(config.model.path).map((name) => path.join(config.model.path, name)),
    ...Object.values(config.data.eval).map(({ file }) => file),
  ].filter((file) => existsSync(file));
  const stats = files.sort().map((file) => [file, statSync(file).size, Math.round(statSync(file).mtimeMs)]);
  const { path: model, init } = config.model;
  const hash = createHash("sha256").update(JSON.stringify(stats)).digest("hex");
  const settings = { model, init, seed: config.seed, dtype: config.dtype, data, eval: config.eval, files: hash };
  return `${JSON.stringify(settings, null, 2)}\n`;
}
