/** What GRPO and SFT share: steps, metric lines, evaluations, checkpoints, progress, and an orderly stop. */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import { beginOperation, beginStep } from "../distributed/operation.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { log } from "../log.ts";
import type { Metrics } from "../types.ts";
import type { Checkpointer } from "./checkpointer.ts";
import { Eta } from "./metrics.ts";
import type { RunFolder } from "./run-folder.ts";
import { tracedStep } from "./step-trace.ts";

/** How far a run has come; src/cli draws it. */
export interface Progress {
  step: number; // steps made
  steps: number;
  metrics: Metrics;
  etaS: number;
}

/** What the caller of a training run may pass. */
export interface TrainHooks {
  /** Go on from the newest checkpoint in runDir; without one the run starts from the beginning. */
  resume?: boolean;
  /** Replace the run that runDir holds. */
  overwrite?: boolean;
  /** The processes that make this run together; default: this one alone. */
  ranks?: Ranks;
  /** Called once the run folder is this run's, before the model is read. */
  onOpen?: () => void;
  onProgress?: (progress: Progress) => void;
  /** Called with the error that ends a run as soon as there is one, before what is under way is brought to an end. */
  onFailure?: (error: unknown) => void;
  /** During an evaluation: how many of a level's questions are answered. */
  onEvalProgress?: (progress: { level: string; done: number; total: number }) => void;
}

export interface TrainResult {
  runDir: string;
  /** Steps made, over all sessions. */
  step: number;
  /** False when a signal ended the run before its last step; it can be resumed. */
  finished: boolean;
  /** Hugging Face folder of the trained model; null when not finished, or not wanted (trainer.saveFinal). */
  finalDir: string | null;
}

/** One kind of training, as the loop drives it. */
export interface Training {
  steps: number; // of the whole run
  firstStep: number; // 0, or where a checkpoint left off
  /** Makes step number `step`, counted from 0. */
  runStep(step: number): Promise<Metrics>;
  /** `eval/<level>/...`; null when `stopped` turned true on the way. */
  evaluate(stopped: () => boolean): Promise<Metrics | null>;
  /**
   * Begins a checkpoint; resolves when training may go on. `last`: no step follows; the checkpoint is complete then. `metrics` are those of its
   * step, an evaluation's among them where one was made.
   */
  save(stepsDone: number, last: boolean, metrics: Metrics): Promise<void>;
  /** Tells of a step's checkpoint how good it is, once it is complete. */
  rate(stepsDone: number, metrics: Metrics): void;
  /** Those that are written while steps are made. */
  checkpoints: Pick<Checkpointer, "check" | "saved" | "takeMetrics">;
  /** Writes the trained model; returns its folder. */
  exportModel(): string;
}

/**
 * Runs steps until the last one, or until SIGTERM or SIGINT: then the step in progress is finished and saved and the function returns with
 * `finished: false`. A second signal ends the process at once.
 * A step's line is written before its checkpoint, so every line up to a checkpoint's step is there when a run resumes from it; what a
 * checkpoint took stands in a later step's line. One that fails ends the run at the end of the step in which it does.
 * An evaluation that a signal has cut short is made by the run that goes on from there, before its first step.
 */
export async function trainingLoop(
  training: Training,
  folder: RunFolder,
  config: Config,
  hooks: TrainHooks,
): Promise<TrainResult> {
  const { saveEvery, saveFinal, evalEvery } = config.trainer;
  const { steps, checkpoints } = training;
  const ranks = hooks.ranks ?? ALONE;
  const stop = listenForStop();
  /** All ranks stop after the same step, whichever was told to. All must ask. */
  let stopping = false;
  const agreeOnStop = () => {
    stopping ||= ranks.any(stop.requested());
    return stopping;
  };
  const isEvalDue = (done: number) => evalEvery > 0 && (done % evalEvery === 0 || done === steps);
  let done = training.firstStep;
  try {
    const before = done === 0 && evalEvery > 0 ? await training.evaluate(stop.requested) : null;
    if (before !== null) folder.writeMetrics(0, before);
    if (done > 0 && isEvalDue(done) && ranks.any(folder.lacksEvaluation(done))) {
      beginOperation("evaluation");
      const late = await training.evaluate(stop.requested);
      if (late !== null) {
        training.rate(done, late);
        folder.addToLastLine(late); // last: a run that is killed before asks again
      }
    }
    const eta = new Eta();
    while (done < steps && !agreeOnStop()) {
      beginStep(done + 1);
      const metrics = await tracedStep(config, folder.dir, done + 1, ranks.rank, () => training.runStep(done));
      done++;
      hooks.onProgress?.({ step: done, steps, metrics, etaS: eta.tick(steps - done) });
      beginOperation("evaluation, or the step's end");
      const evaluated = isEvalDue(done) && !agreeOnStop() ? await training.evaluate(stop.requested) : null;
      folder.writeMetrics(done, { ...metrics, ...evaluated, ...checkpoints.takeMetrics() });
      await nextTurn(); // signals, and what became of a checkpoint, are handed over between turns of the event loop
      checkpoints.check();
      const last = done === steps || agreeOnStop();
      if ((last && saveFinal) || (saveEvery > 0 && done % saveEvery === 0)) {
        folder.flush();
        beginOperation("checkpoint");
        await training.save(done, last, { ...metrics, ...evaluated });
      }
    }
    await checkpoints.saved();
  } catch (error) {
    hooks.onFailure?.(error);
    throw error;
  } finally {
    stop.end();
  }
  const finished = done >= steps;
  if (!finished)
    log.info(
      { step: done, steps, saved: saveFinal },
      "stopped by a signal; --resume goes on from the newest checkpoint",
    );
  return { runDir: folder.dir, step: done, finished, finalDir: finished && saveFinal ? training.exportModel() : null };
}

/** Signals this soon after the first are the same request: npm and other wrappers pass on what the terminal sent already. */
const ONE_REQUEST_MS = 1000;

/**
 * Turns the first SIGTERM or SIGINT into a request to stop. A second after it the signals have their usual effect again, so that another
 * one ends the process even while it computes.
 */
function listenForStop(): { requested: () => boolean; end: () => void } {
  let first: number | null = null;
  const onSignal = (signal: NodeJS.Signals) => {
    if (first !== null) {
      if (performance.now() - first > ONE_REQUEST_MS) process.exit(signal === "SIGINT" ? 130 : 143);
      return;
    }
    first = performance.now();
    log.info(
      { signal },
      "finishing the step, then saving and leaving; another signal, a second from now, leaves at once",
    );
    setTimeout(off, ONE_REQUEST_MS).unref();
  };
  const off = () => {
    process.off("SIGTERM", onSignal);
    process.off("SIGINT", onSignal);
  };
  // Once asked to stop, the listeners outlive a loop that ends sooner: the same request may still be on its way.
  const end = () => {
    if (first === null) off();
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  return { requested: () => first !== null, end };
}
