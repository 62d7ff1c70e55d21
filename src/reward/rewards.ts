/**
 * The rewards of a run: built-in functions, the user's own in threads, processes or behind HTTP, and their weighted sum. All functions are
 * asked at the same time; their values come back in the order of the completions.
 */

import type { z } from "zod";
import { isMetricName } from "../config/check-rewards.ts";
import { type RewardFunctionConfig, rewardFunction } from "../config/rewards.ts";
import { ConfigError, RewardError } from "../errors.ts";
import { log } from "../log.ts";
import type { AccuracyOptions } from "./accuracy.ts";
import { batchOf, type RewardBatch, type ScoredGroup } from "./batch.ts";
import { HttpReward } from "./bridge/http.ts";
import { PythonReward } from "./bridge/python.ts";
import { builtInRewards } from "./built-in.ts";
import { CustomReward } from "./custom.ts";
import { type Judged, judge } from "./judge.ts";
import type { RewardStep } from "./reward-function.ts";
import type { RewardSource } from "./source.ts";

export interface Rewards {
  /** Loads every function of the user's own, so that what cannot be loaded is known before anything else is. Throws RewardError. */
  start(): Promise<void>;
  /**
   * Fills `rewards` (weighted sum of the functions that apply; NaN where none with a weight does), `rewardBreakdown` (unweighted; NaN where
   * a function does not apply) and, where there is something to tell, `rewardNotes` of every group. Throws RewardError, and leaves the
   * groups as they were, if a function fails whose onError is stop. Functions get a column for each of `fields`, whatever records a
   * batch has: what they are called with does not depend on which questions meet in a step, or on a rank.
   */
  score(groups: ScoredGroup[], step?: RewardStep, fields?: readonly string[]): Promise<void>;
  /** Ends threads and processes. */
  close(): Promise<void>;
}

interface NamedReward {
  config: RewardFunctionConfig;
  source?: RewardSource; // none: built in
  judged(batch: RewardBatch): Promise<Judged>;
}

const NO_TRAINING: RewardStep = { step: 0, steps: 1, epoch: 0, epochs: 1 };

/** Builds the reward functions of a run. Throws ConfigError for an unknown or taken name or a missing file. */
export function createRewards(
  configs: readonly z.input<typeof rewardFunction>[],
  options: AccuracyOptions = {},
): Rewards {
  const complete = configs.map((config) => rewardFunction.parse(config));
  const names = complete.map(({ name }) => name);
  const functions = complete.map((config, i): NamedReward => {
    const { name } = config;
    if (names.indexOf(name) !== i) throw new ConfigError(`rewards: the name "${name}" is used twice`, { name });
    if (isMetricName(name, names)) throw new ConfigError(`rewards: "${name}" is the name of a metric`, { name });
    const source = sourceOf(config);
    return source === null
      ? builtIn(config, options)
      : { config, source, judged: (batch) => ask(config, source, batch) };
  });
  const sources = functions.flatMap(({ source }) => source ?? []);
  return {
    async start() {
      const started = await Promise.allSettled(sources.map((source) => source.start()));
      const failed = started.find((result) => result.status === "rejected");
      if (failed !== undefined) throw failed.reason;
    },
    async score(groups, step = NO_TRAINING, fields = []) {
      if (groups.length === 0) return; // a rank without questions: functions need not know that there is such a thing
      const batch = batchOf(groups, step, fields);
      const results = await Promise.all(
        functions.map(async ({ config, judged }) => ({ ...config, ...(await judged(batch)) })),
      );
      let first = 0;
      for (const group of groups) {
        const size = group.completions.length;
        fill(group, results, first, first + size);
        first += size;
      }
      warnOfUnscored(groups);
    },
    async close() {
      await Promise.all(sources.map((source) => source.close()));
    },
  };
}

/** Loads the functions, then does `work`. They are ended where either fails, and left to the caller where both succeed. */
export async function startedWith<T>(rewards: Rewards, work: () => Promise<T>): Promise<T> {
  try {
    await rewards.start();
    return await work();
  } catch (error) {
    await rewards.close();
    throw error;
  }
}

/** Loads all functions once and ends them again: what a plan can say of them. Throws ConfigError and RewardError. */
export async function checkRewardFunctions(configs: readonly RewardFunctionConfig[]): Promise<void> {
  const rewards = createRewards(configs);
  try {
    await rewards.start();
  } finally {
    await rewards.close();
  }
}

/** What runs a function of the user's own; null for a built-in one. */
function sourceOf(config: RewardFunctionConfig): RewardSource | null {
  const { path, python, url, interpreter = "python3" } = config;
  if (path !== undefined) return new CustomReward({ ...config, path });
  if (python !== undefined) return new PythonReward({ ...config, python, interpreter });
  return url === undefined ? null : new HttpReward({ ...config, url });
}

function builtIn(config: RewardFunctionConfig, options: AccuracyOptions): NamedReward {
  const { name } = config;
  const builtIns = builtInRewards(options);
  const found = Object.hasOwn(builtIns, name) ? builtIns[name] : undefined;
  if (found === undefined) {
    const known = Object.keys(builtIns).join(", ");
    throw new ConfigError(
      `rewards: "${name}" is not built in (${known}); give path for a module, python for a Python function or url for a server`,
      { name },
    );
  }
  return {
    config,
    judged: async (batch) => judge({ name, onError: "stop" }, { values: await found(batch.args) }, batch),
  };
}

async function ask({ name, onError }: RewardFunctionConfig, source: RewardSource, batch: RewardBatch): Promise<Judged> {
  const answer = await source.score(batch).catch((error: unknown) => {
    if (error instanceof RewardError) return error;
    throw error;
  });
  return judge({ name, place: source.place, onError }, answer, batch);
}

/** Sums up what the functions gave for the completions [first, end) of the batch: those of one group. */
function fill(
  group: ScoredGroup,
  results: readonly (RewardFunctionConfig & Judged)[],
  first: number,
  end: number,
): void {
  const size = end - first;
  const sums = new Array<number>(size).fill(0);
  const scored = new Array<boolean>(size).fill(false);
  group.rewardBreakdown = {};
  const errors: Record<string, number> = {};
  const metrics: Record<string, number> = {};
  const columns: Record<string, unknown[]> = {};
  for (const { name, weight, values, failed, ...logged } of results) {
    const own = values.slice(first, end);
    group.rewardBreakdown[name] = own.map((value) => value ?? Number.NaN);
    for (const [i, value] of own.entries()) {
      sums[i] = (sums[i] as number) + weight * (value ?? 0);
      if (value !== null && weight !== 0) scored[i] = true;
    }
    const count = failed.slice(first, end).filter(Boolean).length;
    if (count > 0) errors[name] = count;
    for (const [metric, value] of Object.entries(logged.metrics)) metrics[`${name}/${metric}`] = value;
    for (const [column, all] of Object.entries(logged.columns)) columns[`${name}/${column}`] = all.slice(first, end);
  }
  group.rewards = sums.map((sum, i) => (scored[i] ? sum : Number.NaN));
  const some = Object.entries({ errors, metrics, columns }).filter(([, notes]) => Object.keys(notes).length > 0);
  if (some.length > 0) group.rewardNotes = Object.fromEntries(some);
}

function warnOfUnscored(groups: readonly ScoredGroup[]): void {
  const unscored = groups.flatMap(({ prompt, rewards }) =>
    rewards.flatMap((reward) => (Number.isNaN(reward) ? [prompt.sample.id] : [])),
  );
  if (unscored.length === 0) return;
  const fields = { completions: unscored.length, firstSample: unscored[0] };
  log.warn(fields, "no reward function applies to these completions: they count in no mean and have advantage 0");
}
