/** The trials of a sweep as its journal tells of them, and their order from best to worst. */

import type { Params } from "./space.ts";
import type { Objective } from "./spec.ts";

/** A line of the journal. */
export type SweepEvent =
  | { event: "proposed"; trial: number; params: Params }
  | { event: "rung"; trial: number; seed: number; step: number; value: number; goesOn: boolean }
  | ({ event: "ended"; trial: number } & TrialRun);

/** A run that has ended. */
export interface TrialRun {
  seed: number;
  how: "finished" | "stopped" | "failed";
  /** The objective: of a run that was stopped, at the rung; null of one that failed. */
  value: number | null;
  step: number;
  seconds: number;
  reason?: string;
}

export interface Rung {
  seed: number;
  step: number;
  value: number;
}

export interface Trial {
  trial: number;
  params: Params;
  /** open: not all of its runs have ended. */
  status: "open" | "finished" | "stopped" | "failed";
  runs: TrialRun[];
  rungs: Rung[];
  /** Mean over its runs; null where one failed or none has ended. */
  value: number | null;
}

/**
 * Trials in the order of their numbers. Of a run that an earlier process did not finish, rungs are left out: it is made again. One that failed and
 * was made once more counts as it ended last.
 */
export function trialsOf(events: readonly SweepEvent[], seeds: readonly number[]): Trial[] {
  const trials: Trial[] = [];
  const runOf = (event: SweepEvent) => (event.event === "ended" ? `${event.trial} ${event.seed}` : undefined);
  const latest = new Map(events.map((event, i) => [runOf(event), i]));
  for (const [i, event] of events.entries()) {
    if (event.event === "proposed") {
      const { trial, params } = event;
      trials[trial] = { trial, params, status: "open", runs: [], rungs: [], value: null };
    } else if (event.event === "ended" && latest.get(runOf(event)) === i) {
      const { event: _event, trial, ...run } = event;
      endRun(trials[trial] as Trial, run, seeds);
    }
  }
  for (const event of events) {
    if (event.event !== "rung") continue;
    const { seed, step, value } = event;
    const trial = trials[event.trial] as Trial;
    if (!trial.runs.some((run) => run.seed === seed)) continue;
    trial.rungs = trial.rungs.filter((rung) => rung.seed !== seed || rung.step !== step); // a run made again: its latest
    trial.rungs.push({ seed, step, value });
  }
  return trials;
}

/** Adds the end of a run to its trial. */
export function endRun(trial: Trial, run: TrialRun, seeds: readonly number[]): void {
  trial.runs.push(run);
  if (run.how !== "finished") trial.status = run.how;
  else if (trial.runs.length === seeds.length) trial.status = "finished";
  const values = trial.runs.map(({ value }) => value);
  trial.value = values.includes(null) ? null : mean(values as number[]);
}

/** How good a value is: more is better. */
export function goodness(value: number, { goal }: Pick<Objective, "goal">): number {
  return goal === "maximize" ? value : -value;
}

/** Trials whose runs have ended, the best first: finished ones, then stopped ones by how far they came, then failed ones. */
export function ranked(trials: readonly Trial[], objective: Pick<Objective, "goal">): Trial[] {
  const classOf = ({ status }: Trial) => ["finished", "stopped", "failed"].indexOf(status);
  const reached = ({ runs }: Trial) => runs.reduce((sum, { step }) => sum + step, 0);
  const value = ({ value }: Trial) => (value === null ? Number.NEGATIVE_INFINITY : goodness(value, objective));
  return trials
    .filter(({ status }) => status !== "open")
    .sort((a, b) => {
      if (classOf(a) !== classOf(b)) return classOf(a) - classOf(b);
      if (a.status === "stopped" && reached(a) !== reached(b)) return reached(b) - reached(a);
      if (value(a) !== value(b)) return value(b) > value(a) ? 1 : -1;
      return a.trial - b.trial;
    });
}

/** Of at least one value. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
