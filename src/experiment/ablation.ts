/**
 * An ablation: named variants of one training, each with every seed, on the same questions (a step's questions are a function of seed and step).
 *
 *   <runDir>/journal.jsonl                              what has ended
 *            variant-<name>/seed-<s>.yaml, .log         the exact config, what the run printed
 *            variant-<name>/seed-<s>/, seed-<s>-eval/   run folder; answers of the trained model to all questions of data.eval
 *
 * A killed ablation goes on where it was, and variants, seeds and metrics may be added to one.
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { dumpConfig, parseConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { ConfigError, ProcessError } from "../errors.ts";
import { changedSettings } from "../eval/settings.ts";
import { replaceFile } from "../trainer/files.ts";
import { type Ablation, type Job, jobFolder } from "./ablation-spec.ts";
import { openFolder } from "./folder.ts";
import { Journal } from "./journal.ts";
import { makeRun, type Program } from "./run.ts";
import { SlotWork } from "./slot-work.ts";
import type { Slot } from "./slots.ts";

/** A line of the journal: a job's training, or the evaluation of its model, has ended. */
export interface AblationEvent {
  event: "ended";
  stage: "train" | "eval";
  variant: string;
  seed: number;
  how: "finished" | "failed";
  step: number;
  seconds: number;
  reason?: string;
}

/** A job and what has become of it. */
export interface JobState {
  job: Job;
  folder: string;
  status: "open" | "finished" | "failed";
  seconds: number;
  reason?: string | undefined;
  /** Its training has ended, but the model is gone and asked for by what was added since. */
  trainAgain?: boolean;
}

export interface AblationOptions {
  program: Program;
  slots: readonly Slot[];
  signal: AbortSignal;
  overwrite?: boolean;
  retryFailed?: boolean;
  onJob?: (job: JobState, jobs: readonly JobState[]) => void;
}

type Stage = AblationEvent["stage"];

/**
 * Runs an ablation to its end, or goes on with the one that the folder holds.
 * @throws ConfigError where a run was made with another config; ProcessError when more runs failed than maxFailed
 */
export async function runAblation(
  ablation: Ablation,
  options: AblationOptions,
): Promise<{ jobs: JobState[]; finished: boolean }> {
  using folder = openFolder(ablation.runDir, { kind: "ablation" }, { overwrite: options.overwrite ?? false });
  using journal = new Journal<AblationEvent>(folder.journalFile);
  const work = new SlotWork(options.slots, options.signal);
  const { signal } = work;
  const jobs = ablation.jobs.map((job) => stateOf(job, ablation, journal.events, options.retryFailed === true));
  for (const state of jobs) keepConfig(state, journal.events);
  for (const state of [...jobs].reverse()) {
    // whoever starts from a model comes behind it in the list
    if (!lacksModel(state, jobs, ablation)) continue;
    state.trainAgain = true;
    state.status = "open";
  }
  const begun = new Set<JobState>();
  while (!signal.aborted) {
    const next = jobs.find((state) => state.status === "open" && !begun.has(state) && !waits(state, jobs));
    if (next === undefined && work.isIdle) break;
    if (next === undefined || work.isFull) {
      await work.oneEnds();
      continue;
    }
    begun.add(next);
    work.start((slot) => runJob(next, { ablation, options, journal, jobs, slot, signal }));
  }
  await work.allEnd();
  return { jobs, finished: !options.signal.aborted };
}

function stateOf(job: Job, ablation: Ablation, events: readonly AblationEvent[], retry: boolean): JobState {
  const own = events.filter(({ variant, seed }) => variant === job.variant && seed === job.seed);
  const failed = retry ? undefined : own.find(({ stage, how }) => how === "failed" && !hasFinished(own, stage));
  const done = stagesOf(job, ablation).every((stage) => hasFinished(own, stage));
  const seconds = own.reduce((sum, event) => sum + event.seconds, 0);
  const status = done ? "finished" : failed === undefined ? "open" : "failed";
  return { job, folder: jobFolder(ablation.runDir, job), status, seconds, reason: failed?.reason };
}

function hasFinished(events: readonly AblationEvent[], stage: Stage): boolean {
  return events.some((event) => event.stage === stage && event.how === "finished");
}

function stagesOf({ command }: Job, { evaluate }: Ablation): Stage[] {
  return [...(command === "none" ? [] : ["train" as const]), ...(evaluate ? ["eval" as const] : [])];
}

/** Whether a model that was trained and not kept is needed now: for an evaluation that is left, or by jobs that start from it. */
function lacksModel({ job, folder, status }: JobState, jobs: readonly JobState[], { evaluate }: Ablation): boolean {
  if (job.command === "none" || status === "failed" || !existsSync(folder)) return false;
  if (existsSync(path.join(folder, "final"))) return false;
  const isOpenHere = evaluate && status === "open";
  return (
    isOpenHere ||
    jobs.some((other) => other.job.from === job.variant && other.job.seed === job.seed && other.status === "open")
  );
}

/** Whether the model that a job starts from is not there yet; a job whose source has failed waits for good. */
function waits({ job }: JobState, jobs: readonly JobState[]): boolean {
  if (job.from === undefined) return false;
  const source = jobs.find((other) => other.job.variant === job.from && other.job.seed === job.seed);
  return source?.status !== "finished";
}

/** Writes the exact config of a job, and refuses another one than it was begun with. */
function keepConfig({ job, folder }: JobState, events: readonly AblationEvent[]): void {
  const file = `${folder}.yaml`;
  if (events.some(({ variant, seed }) => variant === job.variant && seed === job.seed) && existsSync(file)) {
    const before = parseConfig(readFileSync(file, "utf8"), file);
    const changes = changedSettings(deciding(before), deciding(job.config));
    if (changes.length > 0)
      throw new ConfigError(
        `${job.variant} with seed ${job.seed} was run with another config; name the variant otherwise, set another runDir or --overwrite\n  ${changes.slice(0, 6).join("\n  ")}`,
      );
  }
  mkdirSync(path.dirname(file), { recursive: true });
  replaceFile(file, dumpConfig(job.config));
}

/** Without what decides no result. */
function deciding({ runDir: _runDir, device: _device, threads: _threads, trainer, ...knobs }: Config) {
  const { saveEvery: _every, saveFinal: _final, keepLast: _last, keepBest: _best, ...rest } = trainer;
  return { ...knobs, trainer: rest };
}

interface JobWork {
  ablation: Ablation;
  options: AblationOptions;
  journal: Journal<AblationEvent>;
  jobs: readonly JobState[];
  slot: Slot;
  signal: AbortSignal;
}

/** The stages of a job that are left. */
async function runJob(state: JobState, { ablation, options, journal, jobs, slot, signal }: JobWork): Promise<void> {
  const { job, folder } = state;
  const { variant, seed } = job;
  for (const stage of stagesOf(job, ablation)) {
    const own = journal.events.filter((event) => event.variant === variant && event.seed === seed);
    if (hasFinished(own, stage) && !(stage === "train" && state.trainAgain)) continue;
    const place = stage === "train" ? trainOrder(job, folder) : evalOrder(job, folder);
    const end = await makeRun(options.program, { ...place, slot, signal, maxMinutes: ablation.maxMinutes });
    if (end.how === "interrupted") return;
    const how = end.how === "finished" ? "finished" : "failed";
    const step = end.lines.at(-1)?.step ?? 0;
    const reason = end.reason === undefined ? {} : { reason: end.reason };
    journal.add({ event: "ended", stage, variant, seed, how, step, seconds: end.seconds, ...reason });
    state.seconds += end.seconds;
    if (how === "failed") {
      state.status = "failed";
      state.reason = end.reason;
      break;
    }
  }
  if (state.status === "open") state.status = "finished";
  if (state.status === "finished" && !ablation.keepModels && !job.isSource) removeModels(folder);
  options.onJob?.(state, jobs);
  const failures = jobs.filter(({ status }) => status === "failed");
  if (failures.length > ablation.maxFailed)
    throw new ProcessError(
      `${failures.length} runs`,
      `have failed, more than maxFailed (${ablation.maxFailed})`,
      state.reason ?? "",
    );
}

function trainOrder({ command }: Job, folder: string) {
  return { args: [command, "--config", `${folder}.yaml`], runDir: folder };
}

function evalOrder({ command }: Job, folder: string) {
  const model = path.join(folder, "final");
  // model.adapter is merged into what was trained
  const knobs = [`model.path=${JSON.stringify(model)}`, "model.init=pretrained", "model.adapter=null"];
  const trained = knobs.flatMap((knob) => ["--set", knob]);
  const args = ["eval", "--config", `${folder}.yaml`, ...(command === "none" ? [] : trained)];
  return { args, runDir: evalFolder(folder), evaluates: true };
}

/** Where the answers of a job's model are. */
export function evalFolder(folder: string): string {
  return `${folder}-eval`;
}

function removeModels(folder: string): void {
  if (!existsSync(folder)) return;
  for (const name of readdirSync(folder)) {
    if (/^(final|best|checkpoint-\d+)$/.test(name)) rmSync(path.join(folder, name), { recursive: true });
  }
}
