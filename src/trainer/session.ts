/** How a run starts, resumes, reads its questions, is evaluated and is saved: the same for GRPO and SFT. */

import path from "node:path";
import { bestRule, whyUnrated } from "../config/best-checkpoints.ts";
import type { MergedAdapter } from "../config/merged-adapters.ts";
import type { Config } from "../config/schema.ts";
import { BadSamples } from "../data/bad-samples.ts";
import { responseOf } from "../data/chat.ts";
import { sampleIndices } from "../data/order.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { CheckpointError, NumericsError } from "../errors.ts";
import { evalMetrics, evaluateLevels, readLevels, sumResults } from "../eval/evaluate.ts";
import { log } from "../log.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { checkGoldOfRewards } from "../reward/gold.ts";
import { memoryStats, resetPeakMemory, versions } from "../torch/cuda.ts";
import { patiently } from "../torch/progress.ts";
import { liveTensors } from "../torch/scope.ts";
import type { Device } from "../torch/tensor.ts";
import type { Metrics, Sample } from "../types.ts";
import { applyDevice, openPipeline, type Pipeline, readTrainingData } from "./assemble.ts";
import {
  type CheckpointFile,
  checkpointFiles,
  fingerprint,
  readCheckpoint,
  recordsFingerprint,
  restoreOptimizer,
  type TrainState,
} from "./checkpoint.ts";
import { latestCheckpoint } from "./checkpoint-folder.ts";
import { Checkpointer } from "./checkpointer.ts";
import { replaceFolder } from "./files.ts";
import { AdamW } from "./optimizer.ts";
import { mergedBefore, openPolicy, savePolicy } from "./policy.ts";
import { measureQuestions, type PlacedSample, QuestionShares } from "./question-shares.ts";
import { type ComputedGroup, RunFolder } from "./run-folder.ts";
import { totalSteps } from "./schedule.ts";
import { changedKnobs, sharedKnobs } from "./session-knobs.ts";
import { rateShares, takeTrained } from "./trained.ts";
import { type TrainHooks, type Training, type TrainResult, trainingLoop } from "./training-loop.ts";
import type { StepPrompts } from "./whole-batch.ts";

/** An open training run. */
export interface Session extends Pipeline {
  config: Config;
  ranks: Ranks; // that make the run together
  stage: TrainState["stage"];
  folder: RunFolder;
  model: Qwen2VL;
  merged: MergedAdapter[]; // in its weights
  optimizer: AdamW;
  checkpoints: Checkpointer;
  samples: Sample[];
  levels: Record<string, Sample[]>; // evaluated on the way
  steps: number; // of the whole run
  firstStep: number; // 0, or where the checkpoint left off
  badSamples: number; // left out of steps so far, over all sessions
  shares: QuestionShares; // of what each step asks
  bad: BadSamples; // the records behind that number, held against data.maxBadSamples
  /** Fingerprint of the weights before the first step. */
  startWeights: string;
  /** What this rank writes into a checkpoint besides policy, optimizer and state. */
  moreFiles?: () => CheckpointFile[];
}

/** Opens a new run, or with `hooks.resume` the newest checkpoint of the one in config.runDir. */
export async function openSession(config: Config, hooks: TrainHooks, stage: TrainState["stage"]): Promise<Session> {
  const { ranks = ALONE } = hooks;
  applyDevice(config);
  const checkpoint = hooks.resume ? latestCheckpoint(config.runDir) : undefined;
  ranks.requireSame({
    knobs: sharedKnobs(config),
    checkpoint: checkpoint === undefined ? null : path.basename(checkpoint),
  });
  const state = checkpoint === undefined ? null : readCheckpoint(checkpoint, stage, ranks);
  const bad = new BadSamples(config.data, log, state?.badRecords);
  const samples = await readTrainingData(config, bad);
  if (stage === "sft")
    samples.forEach(responseOf); // now, not in the step that asks the record
  else {
    checkGoldOfRewards(config.rewards, samples, "data.train", { firstLetter: config.compat.firstLetterReward });
  }
  ranks.requireSame({ records: recordsFingerprint(samples) });
  const levels = config.trainer.evalEvery > 0 ? await readLevels(config, bad) : {};
  const opened: Disposable[] = [];
  const own = <T extends Disposable>(item: T): T => {
    opened.push(item);
    return item;
  };
  try {
    const session = {
      config,
      ranks,
      stage,
      samples,
      levels,
      steps: totalSteps(config, samples.length),
      firstStep: state?.step ?? 0,
      badSamples: state?.badSamples ?? 0,
      bad,
    };
    const replace = { overwrite: hooks.overwrite ?? false };
    const first = hooks.resume ? { resumeAt: state?.step ?? -1 } : replace;
    const folder = own(new RunFolder(config, ranks.isFirst ? first : { follower: ranks.rank }));
    hooks.onOpen?.();
    announce(session, hooks, checkpoint, state);
    const merged = mergedBefore(config, checkpoint);
    const model = own(openPolicy(config, checkpoint));
    const startWeights = state?.start ?? fingerprint(model.parameters);
    if (model.adapter !== null) requireStartWeights({ config, startWeights }, fingerprint(model.parameters));
    ranks.requireSame({ weights: fingerprint([...model.parameters, ...(model.adapter?.parameters ?? [])]) });
    const { shardGradients } = config.distributed;
    const trained = takeTrained(model, config);
    const options = { shardGradients, rateOf: rateShares(config) };
    const optimizer = own(new AdamW(trained, config.optimizer, config.seed, ranks, options));
    if (checkpoint !== undefined && state !== null) restoreOptimizer(checkpoint, state, optimizer);
    const pipeline = await openPipeline(config, model, bad);
    const { questionsPerStep } = config.trainer;
    const shares = new QuestionShares({
      ranks,
      steps: session.steps,
      samplesOf: (step) =>
        sampleIndices(samples.length, step, questionsPerStep, config.seed).map((index) => samples[index] as Sample),
      measure: measureQuestions(stage, pipeline),
    });
    const checkpoints = new Checkpointer(folder.dir, {
      keepLast: config.trainer.keepLast,
      best: bestRule(config, stage),
      ranks,
    });
    return { ...session, folder, model, merged, optimizer, checkpoints, startWeights, shares, ...pipeline };
  } catch (error) {
    for (const item of opened.reverse()) item[Symbol.dispose]();
    throw error;
  }
}

function announce(
  { config, stage, steps, samples }: Pick<Session, "config" | "stage" | "steps" | "samples">,
  hooks: TrainHooks,
  checkpoint: string | undefined,
  state: TrainState | null,
): void {
  const { device, dtype, runDir } = config;
  log.info({ stage, steps, samples: samples.length, device, dtype, runDir, checkpoint }, "training");
  if (state !== null) {
    for (const change of changedKnobs(state.config, config)) log.warn(`resumed with another ${change}`);
    if (state.records !== undefined && state.records !== recordsFingerprint(samples))
      log.warn(
        "resumed with other training records: the steps left ask other questions than this run would have asked",
      );
  } else if (hooks.resume) log.info("no complete checkpoint to resume from: starting from the beginning");
}

/** Also where a run ends with an error: a checkpoint that is being written is finished first. */
export async function closeSession(session: Session): Promise<void> {
  await session.checkpoints.close();
  await session.close();
  session.optimizer[Symbol.dispose]();
  session.model[Symbol.dispose]();
  session.folder[Symbol.dispose]();
}

/** @throws CheckpointError unless weights with this fingerprint are those the run started from */
export function requireStartWeights(
  { config, startWeights }: Pick<Session, "config" | "startWeights">,
  found: string,
): void {
  if (found === startWeights) return;
  throw new CheckpointError(
    config.model.path,
    "holds other weights than those this run started from; they are its reference policy and, with lora, what is trained beside",
  );
}

/** This rank's prompts of one step. */
export async function loadPrompts(session: Session, step: number): Promise<StepPrompts> {
  const [share = []] = await session.shares.ofSteps(step, lastAhead(session, step));
  return loadShare(session, step, share);
}

/** The last step whose prompts are prepared ahead. */
function lastAhead({ config, steps }: Session, step: number): number {
  return Math.min(step + config.data.prefetch, steps - 1);
}

/**
 * This rank's prompts of what a step asks, and a start on those of the steps after it. A sample that cannot be used is counted and left out: the
 * step goes on with fewer questions.
 */
export async function loadShare(session: Session, step: number, share: readonly PlacedSample[]): Promise<StepPrompts> {
  const { loader, ranks, bad, shares } = session;
  const [, ...later] = await shares.ofSteps(step, lastAhead(session, step)); // known by now
  loader.prefetch([...share, ...later.flat()].map(({ sample }) => sample));
  const loaded: StepPrompts = { prompts: [], places: [], total: 0 };
  let skipped = 0;
  for (const { place, sample } of share) {
    const prompt = await loader.load(sample);
    if (prompt === null) skipped++;
    else {
      loaded.prompts.push(prompt);
      loaded.places.push(place);
    }
  }
  for (const one of ranks.gather({ count: loaded.prompts.length, skipped, bad: bad.known })) {
    loaded.total += one.count;
    session.badSamples += one.skipped;
    if (ranks.world > 1) bad.learn(one.bad);
  }
  return loaded;
}

/** Makes the steps of an open run. Returns after the last one, or after a signal once the step in progress is saved. */
export function trainSession(session: Session, hooks: TrainHooks, runStep: Training["runStep"]): Promise<TrainResult> {
  const { steps, firstStep, checkpoints, folder, config } = session;
  const training: Training = {
    ...{ steps, firstStep, checkpoints, runStep },
    evaluate: (stopped) => evaluate(session, hooks, stopped),
    save: (step, last, metrics) => save(session, step, last, metrics),
    rate: (step, metrics) => checkpoints.rate(step, metrics[bestRule(config, session.stage).metric]),
    exportModel: () => exportModel(session),
  };
  return trainingLoop(training, folder, config, hooks);
}

async function evaluate(session: Session, hooks: TrainHooks, stopped: () => boolean): Promise<Metrics | null> {
  const { ranks } = session;
  const share = await evaluateLevels(session.levels, session, {
    limit: session.config.trainer.evalLimit,
    stopped,
    ...(ranks.world > 1 && { shard: { k: ranks.rank + 1, of: ranks.world } }),
    ...(hooks.onEvalProgress && { onProgress: hooks.onEvalProgress }),
  });
  const shares = ranks.gather(share);
  return shares.every((one) => one !== null) ? evalMetrics(sumResults(shares)) : null;
}

/** Begins the checkpoint of a step, whose metrics tell how good it is; resolves when training may go on, with `last` when it is complete. */
async function save(session: Session, step: number, last: boolean, metrics: Metrics): Promise<void> {
  const { config, stage, model, merged, optimizer, samples, badSamples, bad, startWeights, ranks } = session;
  const { torch } = versions();
  const state: TrainState = {
    stage,
    step,
    updates: optimizer.updates,
    badSamples,
    badRecords: bad.known,
    records: recordsFingerprint(samples),
    start: startWeights,
    config,
    versions: { node: process.version, torch },
  };
  const files = checkpointFiles(state, model, optimizer, { copyFrom: config.model.path, merged, ranks });
  const { metric, count } = bestRule(config, stage);
  const value = metrics[metric];
  if (count > 0 && !Number.isFinite(value))
    log.warn(
      { step, metric, value },
      `trainer.bestMetric: a checkpoint without ${metric} is not among the best; ${whyUnrated(metric, metrics)}`,
    );
  await session.checkpoints.save(step, [...files, ...(session.moreFiles?.() ?? [])], { last, value });
}

/** Writes the policy to `<runDir>/final`, with tokenizer and processor files and, in `adapter/`, its adapter beside it. Returns the folder. */
function exportModel({ config, folder, merged, model, ranks }: Session): string {
  const final = path.join(folder.dir, "final");
  const write = (temporary: string) => savePolicy(model, temporary, config, { merged, place: final });
  if (ranks.isFirst) patiently(() => replaceFolder(final, write));
  return final;
}

/**
 * The error for a step whose loss or gradient is not finite, after writing what was being computed to `numerics-step-<n>.json`. The
 * weights are as they were before the step; the newest checkpoint is whole.
 */
export function refuseBatch(
  { folder }: Session,
  step: number,
  [what, value]: [name: string, value: number],
  batch: readonly ComputedGroup[],
  packStats: unknown,
): NumericsError {
  const file = folder.dumpBatch(step, { what, value, packStats }, batch);
  const sampleIds = batch.map(({ prompt }) => prompt.sample.id);
  return new NumericsError(`${what} of step ${step} (batch written to ${file})`, value, { step, sampleIds, file });
}

/** `memory/...` of a step: live tensors and their bytes; peak: on a GPU the most since the call before, else the process's most so far. */
export function memoryMetrics(device: Device): Metrics {
  const GIB = 2 ** 30;
  const live = liveTensors();
  const onCpu = device === "cpu"; // there may be a GPU all the same
  const peak = onCpu ? process.resourceUsage().maxRSS * 1024 : memoryStats().peak;
  if (!onCpu) resetPeakMemory();
  return {
    "memory/live_tensors": live.count,
    "memory/live_gib": live.bytes / GIB,
    "memory/peak_gib": peak / GIB,
  };
}
