/** A sweep's YAML file, read and checked before anything starts. */

import { z } from "zod";
import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { ConfigError } from "../errors.ts";
import { halvingSchema } from "./halving.ts";
import { gridSettings, type Search, tpeSchema } from "./search.ts";
import { type Params, problemOfSetting, readSpace, sizeOf, spaceSchema } from "./space.ts";
import {
  assignments,
  type CommonSpec,
  commonKeys,
  knobValues,
  type Objective,
  objectiveSchema,
  readSpec,
  refuseReserved,
} from "./spec.ts";

export const sweepSchema = z.strictObject({
  ...commonKeys,
  objective: objectiveSchema,
  space: spaceSchema.meta({ description: "Knobs that vary." }),
  search: z.enum(["grid", "random", "tpe"]).default("tpe").meta({ description: "How settings are chosen." }),
  first: z.array(knobValues).default([]).meta({
    description: "Settings of all these knobs to try before others, such as the one in use.",
  }),
  trials: z.number().int().positive().optional().meta({ description: "Settings to try; a grid: all, if not set." }),
  seed: z.number().int().nonnegative().default(0).meta({ description: "Key of the search's own draws." }),
  tpe: tpeSchema.prefault({}),
  halving: halvingSchema.optional().meta({ description: "Stop trials early; not set: none is." }),
  deterministic: z.boolean().default(true).meta({
    description:
      "Trials made in parallel learn from those that have ended in every repetition of the sweep too, whatever took how long; false: from all that have ended, and none waits for a slow one.",
  }),
});

export type SweepSpec = z.infer<typeof sweepSchema>;

/** A sweep whose file is in order. */
export interface Sweep extends Omit<CommonSpec, "set" | "config"> {
  objective: Objective;
  search: Search;
  trials: number;
  halving?: SweepSpec["halving"];
  deterministic: boolean;
  /** The config of a setting. */
  configOf: (params: Params) => Config;
  /** The same as it would be run by itself: saved as its config says. */
  ownConfigOf: (params: Params) => Config;
  /** What decides the results. */
  settings: Record<string, unknown>;
}

/** Flags of the command line, over the file's keys. */
export interface SweepChanges {
  set?: readonly string[];
  runDir?: string | undefined;
  trials?: number | undefined;
  parallel?: number | undefined;
  seed?: number | undefined;
}

/** Of a grid: those that are checked before the first is run. */
const MOST_SETTINGS = 10_000;

/** Runs leave metrics, and no weights. */
const NO_MODELS = ["trainer.saveEvery=0", "trainer.saveFinal=false"];

/** @throws ConfigError for whatever is wrong with the file, its knobs or their values */
export function readSweep(file: string, { set = [], ...changes }: SweepChanges = {}): Sweep {
  const spec = readSpec(file, sweepSchema, { ...changes });
  refuseReserved(file, "space", Object.keys(spec.space));
  refuseReserved(file, "set", Object.keys(spec.set));
  const load = (models: readonly string[], own: readonly string[]) =>
    loadConfig({ files: spec.config, set: [...models, ...assignments(spec.set), ...set, ...own] });
  const firstSeed = spec.seeds[0] as number;
  const configOf = (params: Params) =>
    load(spec.keepModels ? [] : NO_MODELS, [...assignments(params), `seed=${firstSeed}`]);
  const space = readSpace(file, spec.space, (own) => load([], own));
  const isValid = (params: Params) => {
    try {
      configOf(params);
      return true;
    } catch (error) {
      if (error instanceof ConfigError) return false;
      throw error;
    }
  };
  for (const [i, params] of spec.first.entries()) {
    const problem = problemOfSetting(space, params);
    if (problem !== undefined) throw new ConfigError(`${file}: first.${i}: ${problem}`);
    if (spec.first.slice(0, i).some((other) => isSameSetting(other, params)))
      throw new ConfigError(`${file}: first.${i}: the same setting twice`);
    configOf(params); // throws where they do not go together
  }
  const { seed, tpe, first } = spec;
  const search: Search = { kind: spec.search, space, seed, tpe, first, isValid };
  const trials = trialCount(file, spec, search);
  const base = configOf({});
  if (spec.halving !== undefined && base.trainer.steps === undefined && !("trainer.steps" in spec.space))
    throw new ConfigError(`${file}: halving needs trainer.steps in the config: rungs are counted in steps`);
  const {
    runDir: _runDir,
    config: _config,
    set: _set,
    trials: _trials,
    parallel: _parallel,
    maxFailed: _failed,
    maxMinutes: _minutes,
    ...decides
  } = spec;
  return {
    ...spec,
    search,
    trials,
    configOf,
    ownConfigOf: (params) => load([], [...assignments(params), `seed=${firstSeed}`]),
    settings: { ...decides, base: withoutPlace(base) },
  };
}

/** How many trials there will be, at most. */
function trialCount(file: string, { trials, search, first }: SweepSpec, { space, isValid }: Search): number {
  const size = sizeOf(space);
  if (search === "grid") {
    if (!Number.isFinite(size))
      throw new ConfigError(`${file}: a grid needs values, step or points of every knob of its space`);
    const large = `${file}: a grid of ${size.toLocaleString("en-US")} settings`;
    const remedy = "give ranges a step or points, set trials or search: random";
    const count = trials ?? size;
    if (count > MOST_SETTINGS && size > MOST_SETTINGS) throw new ConfigError(`${large}: ${remedy}`);
    const grid = gridSettings({ space, isValid }, { count, within: MOST_SETTINGS });
    if (grid.length < count && size > MOST_SETTINGS)
      throw new ConfigError(`${large}, of whose first ${MOST_SETTINGS} ${grid.length} are in order: ${remedy}`);
    if (grid.length === 0) throw new ConfigError(`${file}: ${whyNone(space.length)}`);
    const between = first.filter((params) => !grid.some((other) => isSameSetting(other, params)));
    const settings = grid.length + between.length;
    return Math.min(trials ?? settings, settings);
  }
  if (trials === undefined) throw new ConfigError(`${file}: trials is required for search: ${search}`);
  return Math.min(trials, size);
}

function isSameSetting(a: Params, b: Params): boolean {
  return Object.keys(a).every((knob) => JSON.stringify(a[knob]) === JSON.stringify(b[knob]));
}

function whyNone(knobs: number): string {
  return `no setting of its ${knobs} knobs makes a config that is in order`;
}

/** Knobs that do not decide a result. */
function withoutPlace({ runDir: _runDir, device: _device, threads: _threads, ...knobs }: Config) {
  return knobs;
}
