/**
 * A sweep: many short trainings with different knobs, which of them are tried next, which are stopped early, what came of each.
 *
 *   <runDir>/experiment.json       what decides the results
 *            journal.jsonl         settings proposed, rungs passed, runs ended (journal.ts)
 *            trial-<n>/seed-<s>.yaml, .log and seed-<s>/    a run: its exact config, what it printed, its run folder
 *
 * A killed sweep goes on where it was: what its journal says has ended is not made again.
 */

import { mkdirSync } from "node:fs";
import path from "node:path";
import { dumpConfig } from "../config/load.ts";
import { ProcessError } from "../errors.ts";
import { replaceFile } from "../trainer/files.ts";
import { openFolder } from "./folder.ts";
import { goesOn, rungsOf } from "./halving.ts";
import { Journal } from "./journal.ts";
import { type Line, metricAt, missingMetric } from "./objective.ts";
import { makeRun, type Program } from "./run.ts";
import { propose } from "./search.ts";
import { SlotWork } from "./slot-work.ts";
import type { Slot } from "./slots.ts";
import type { Sweep } from "./sweep-spec.ts";
import { endRun, goodness, ranked, type SweepEvent, type Trial, type TrialRun, trialsOf } from "./trials.ts";

export interface SweepOptions {
  program: Program;
  slots: readonly Slot[];
  /** Ends the sweep in an orderly way; what is running is made again by the next one. */
  signal: AbortSignal;
  overwrite?: boolean;
  /** Make runs that failed once more. */
  retryFailed?: boolean;
  onTrial?: (trial: Trial, trials: readonly Trial[]) => void;
}

/**
 * Runs a sweep to its end, or goes on with the one that the folder holds. With P slots and `deterministic` a trial waits for all but the P - 1
 * before it and learns from no other, so that the order in which runs end decides nothing.
 * @throws ConfigError where the folder or the metric does not fit; ProcessError when more runs failed than maxFailed
 */
export async function runSweep(sweep: Sweep, options: SweepOptions): Promise<{ trials: Trial[]; finished: boolean }> {
  const settings = { ...sweep.settings, ...(sweep.deterministic && { parallel: options.slots.length }) };
  using folder = openFolder(sweep.runDir, settings, { overwrite: options.overwrite ?? false });
  using journal = new Journal<SweepEvent>(folder.journalFile);
  const failed = (event: SweepEvent) => event.event === "ended" && event.how === "failed";
  const events = options.retryFailed ? journal.events.filter((event) => !failed(event)) : journal.events;
  const trials = trialsOf(events, sweep.seeds);
  const work = new SlotWork(options.slots, options.signal);
  const { signal } = work;
  const isOver = (trial: number) => trials[trial] !== undefined && trials[trial].status !== "open";

  for (let number = 0; number < sweep.trials && !signal.aborted; number++) {
    if (isOver(number)) continue;
    const before = sweep.deterministic ? Math.max(0, number - options.slots.length + 1) : 0;
    const known = () => (sweep.deterministic ? trials.slice(0, before) : trials);
    while ((work.isFull || !trials.slice(0, before).every(({ trial }) => isOver(trial))) && !signal.aborted)
      await work.oneEnds();
    if (signal.aborted) break;
    let trial = trials[number];
    if (trial === undefined) {
      const paramsOf = (some: readonly Trial[]) => some.map(({ params }) => params);
      const params = propose(sweep.search, number, paramsOf(trials), paramsOf(ranked(known(), sweep.objective)));
      if (params === undefined) break; // every setting that makes sense has been tried
      journal.add({ event: "proposed", trial: number, params });
      trial = { trial: number, params, status: "open", runs: [], rungs: [], value: null };
      trials[number] = trial;
    }
    const open = trial;
    work.start((slot) => runTrial(open, { sweep, options, journal, trials, known, slot, signal }));
  }
  await work.allEnd();
  return { trials, finished: !options.signal.aborted };
}

interface TrialWork {
  sweep: Sweep;
  options: SweepOptions;
  journal: Journal<SweepEvent>;
  trials: readonly Trial[];
  known: () => readonly Trial[];
  slot: Slot;
  signal: AbortSignal;
}

/** The seeds of a trial that are left, one after the other. */
async function runTrial(trial: Trial, work: TrialWork): Promise<void> {
  const { sweep, options, journal, trials, known, slot, signal } = work;
  const { seeds, command, halving } = sweep;
  const folder = path.resolve(sweep.runDir, `trial-${String(trial.trial).padStart(3, "0")}`);
  mkdirSync(folder, { recursive: true });
  for (const seed of seeds.slice(trial.runs.length)) {
    if (signal.aborted) return;
    const config = { ...sweep.configOf(trial.params), seed };
    const file = path.join(folder, `seed-${seed}.yaml`);
    replaceFile(file, dumpConfig(config));
    const rungs = halving === undefined ? [] : rungsOf(halving, config.trainer.steps ?? 0);
    const judge = new Judge({ sweep, trial, seed, rungs, known, journal });
    const runDir = path.join(folder, `seed-${seed}`);
    const args = [command, "--config", file];
    const onLines = (lines: readonly Line[]) => judge.stops(lines);
    const end = await makeRun(options.program, { args, runDir, slot, onLines, signal, maxMinutes: sweep.maxMinutes });
    if (end.how === "interrupted") return;
    const run = runOf(seed, end, judge, sweep, runDir);
    journal.add({ event: "ended", trial: trial.trial, ...run });
    endRun(trial, run, seeds);
    if (trial.status !== "open") break;
  }
  options.onTrial?.(trial, trials);
  const failures = trials.filter(({ status }) => status === "failed");
  if (failures.length > sweep.maxFailed)
    throw new ProcessError(
      `${failures.length} trials`,
      `have failed, more than maxFailed (${sweep.maxFailed})`,
      failures.at(-1)?.runs.at(-1)?.reason ?? "",
    );
}

function runOf(
  seed: number,
  { how, lines, seconds, reason }: Awaited<ReturnType<typeof makeRun>>,
  judge: Judge,
  { objective }: Sweep,
  runDir: string,
): TrialRun {
  const step = lines.at(-1)?.step ?? 0;
  if (how === "stopped") return { seed, how, ...(judge.last as { step: number; value: number }), seconds };
  if (how !== "finished") return { seed, how: "failed", value: null, step, seconds, reason: reason ?? "" };
  const value = metricAt(lines, objective);
  if (value === undefined) throw missingMetric(objective.metric, lines, `objective: ${runDir}`);
  if (!Number.isFinite(value))
    return { seed, how: "failed", value: null, step, seconds, reason: `${objective.metric} is ${value}` };
  return { seed, how, value, step, seconds };
}

/** Decides at each rung whether a run goes on. */
class Judge {
  /** The latest rung that was reached. */
  last: { step: number; value: number } | undefined;
  #stopped = false;
  readonly #run: JudgedRun;

  constructor(run: JudgedRun) {
    this.#run = run;
  }

  /** Looks at the rungs that are new among the lines of a run. */
  stops(lines: readonly Line[]): boolean {
    const { sweep, trial, seed, rungs, known, journal } = this.#run;
    const { objective, halving } = sweep;
    const reached = lines.at(-1)?.step ?? 0;
    for (const step of rungs) {
      if (halving === undefined || this.#stopped || step > reached || step <= (this.last?.step ?? 0)) continue;
      const value = metricAt(lines, objective, step);
      if (value === undefined)
        throw missingMetric(objective.metric, lines, `halving: trial ${trial.trial} at step ${step}`);
      const others = known().filter((other) => other !== trial);
      const values = others.flatMap(({ rungs }) =>
        rungs.filter((rung) => rung.seed === seed && rung.step === step).map((rung) => goodness(rung.value, objective)),
      );
      const own = goodness(value, objective);
      const on = goesOn(own, [own, ...values], halving);
      this.last = { step, value };
      trial.rungs.push({ seed, step, value });
      journal.add({ event: "rung", trial: trial.trial, seed, step, value, goesOn: on });
      this.#stopped = !on;
    }
    return this.#stopped;
  }
}

interface JudgedRun {
  sweep: Sweep;
  trial: Trial;
  seed: number;
  rungs: readonly number[];
  /** The trials it is held against. */
  known: () => readonly Trial[];
  journal: Journal<SweepEvent>;
}
