/** The rewards of a run: a named table of built-in functions, modules of the user's own, and their weighted sum. Text in, numbers out. */

import type { RewardFunctionConfig } from "../config/schema.ts";
import { ConfigError, RewardError } from "../errors.ts";
import type { ChatMessage, RolloutGroup } from "../types.ts";
import { type AccuracyOptions, accuracy } from "./accuracy.ts";
import { consistencyOf, optionsIn, questionOf } from "./consistency.ts";
import { CustomReward } from "./custom.ts";
import { format } from "./format.ts";
import { math } from "./math.ts";
import type { RewardArgs, RewardFunction } from "./reward-function.ts";

/** Every reward that needs no module. */
function builtInRewards(options: AccuracyOptions): Readonly<Record<string, RewardFunction>> {
  return {
    accuracy: ({ completions, solution }) =>
      completions.map((text, i) => accuracy(text, solution[i] as string, options)),
    format: ({ completions }) => completions.map(format),
    math: ({ completions, solution }) => math(completions, solution),
    consistency: ({ completions, prompts }) =>
      completions.map((text, i) => {
        const verdict = consistencyOf(text, optionsIn(questionOf(prompts[i] as ChatMessage[])));
        return verdict === "undecided" ? null : Number(verdict === "consistent");
      }),
  };
}

export interface Rewards {
  /**
   * Fills `rewards` (weighted sum; a function that does not apply adds 0) and `rewardBreakdown` (unweighted; NaN where a function does
   * not apply) of every group. Throws RewardError, and leaves the groups as they were, if any function fails.
   */
  score(groups: RolloutGroup[]): Promise<void>;
  /** Ends the threads of custom functions. */
  close(): Promise<void>;
}

/** Builds the reward functions of a run. Throws ConfigError for an unknown or taken name or a missing module. */
export function createRewards(configs: readonly RewardFunctionConfig[], options: AccuracyOptions = {}): Rewards {
  const builtIns = builtInRewards(options);
  const names = new Set<string>();
  const customs: CustomReward[] = [];
  const functions = configs.map(({ name, path, weight, timeoutS }) => {
    if (names.has(name)) throw new ConfigError(`rewards: the name "${name}" is used twice`, { name });
    if (name === "mean" || name === "std")
      throw new ConfigError(`rewards: "${name}" is the name of a metric`, { name });
    names.add(name);
    if (path === undefined) return { name, weight, run: builtIn(builtIns, name) };
    const custom = new CustomReward({ name, path, timeoutS });
    customs.push(custom);
    return { name, weight, run: (args: RewardArgs) => custom.score(args) };
  });

  return {
    async score(groups) {
      if (groups.length === 0) return; // a rank without questions: functions need not know that there is such a thing
      const args = collectArgs(groups);
      const results = await Promise.all(
        functions.map(async ({ name, weight, run }) => {
          return { name, weight, values: checkValues(name, await run(args), args.completions.length) };
        }),
      );
      let first = 0;
      for (const group of groups) {
        const size = group.completions.length;
        group.rewards = new Array<number>(size).fill(0);
        group.rewardBreakdown = {};
        for (const { name, weight, values } of results) {
          const own = values.slice(first, first + size);
          group.rewardBreakdown[name] = own.map((value) => value ?? Number.NaN);
          for (const [i, value] of own.entries())
            group.rewards[i] = (group.rewards[i] as number) + weight * (value ?? 0);
        }
        first += size;
      }
    },
    async close() {
      await Promise.all(customs.map((custom) => custom.close()));
    },
  };
}

function builtIn(builtIns: Readonly<Record<string, RewardFunction>>, name: string): RewardFunction {
  const found = Object.hasOwn(builtIns, name) ? builtIns[name] : undefined;
  if (found) return found;
  const known = Object.keys(builtIns).join(", ");
  throw new ConfigError(`rewards: "${name}" is not built in (${known}); give path for a module of your own`, { name });
}

/** Lays the completions of all groups out as one batch. */
function collectArgs(groups: readonly RolloutGroup[]): RewardArgs {
  const rows = groups.flatMap(({ prompt, completions }) => {
    return completions.map((completion) => ({ sample: prompt.sample, completion }));
  });
  const fields = new Set(groups.flatMap(({ prompt }) => Object.keys(prompt.sample.fields)));
  return {
    ...Object.fromEntries([...fields].map((key) => [key, rows.map(({ sample }) => sample.fields[key])])),
    prompts: rows.map(({ sample }) => sample.messages),
    completions: rows.map(({ completion }) => completion.text),
    solution: rows.map(({ sample }) => sample.solution),
    id: rows.map(({ sample }) => sample.id),
    lengths: rows.map(({ completion }) => completion.ids.length),
    finish: rows.map(({ completion }) => completion.finish),
  };
}

/** Refuses what is not an array of `count` finite numbers or nulls. */
function checkValues(name: string, values: unknown, count: number): (number | null)[] {
  if (!Array.isArray(values))
    throw new RewardError(name, `expected an array of ${count} numbers, got ${typeName(values)}`);
  if (values.length !== count) {
    throw new RewardError(name, `expected ${count} numbers, one per completion, got ${values.length}`);
  }
  // By index: a hole in a sparse array must not pass as "nothing to check".
  for (let i = 0; i < count; i++) {
    const value: unknown = values[i];
    if (value === null || (typeof value === "number" && Number.isFinite(value))) continue;
    const shown = typeof value === "number" ? String(value) : typeName(value);
    throw new RewardError(name, `expected a finite number or null for completion ${i}, got ${shown}`, {
      completion: i,
    });
  }
  return values as (number | null)[];
}

function typeName(value: unknown): string {
  return value === null
    ? "null"
    : Array.isArray(value)
      ? "an array"
      : value === undefined
        ? "undefined"
        : `a ${typeof value}`;
}
