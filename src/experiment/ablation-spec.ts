/** An ablation's YAML file, read and checked before anything starts. */

import path from "node:path";
import { z } from "zod";
import { loadConfig } from "../config/load.ts";
import { nearest } from "../config/nearest.ts";
import type { Config } from "../config/schema.ts";
import { ConfigError } from "../errors.ts";
import { assignments, commonKeys, knobValues, readSpec, refuseReserved } from "./spec.ts";

const variant = z.strictObject({
  set: knobValues.default({}).meta({ description: "Knobs of this variant, over those of every run." }),
  config: z
    .union([z.string().transform((file) => [file]), z.array(z.string())], {
      error: "expected a config file or a list of them",
    })
    .default([])
    .meta({ description: "Config files after those of every run." }),
  command: z
    .enum(["grpo", "sft", "none"])
    .optional()
    .meta({ description: "Another command than the others'; none: the model as it is, evaluated only." }),
  from: z
    .string()
    .optional()
    .meta({ description: "Start from the model that this variant trained with the same seed." }),
  base: z
    .string()
    .optional()
    .meta({ description: "The variant that this one is held against, in place of the file's base." }),
});

export const ablationSchema = z.strictObject({
  ...commonKeys,
  variants: z.record(z.string(), variant).meta({ description: "What is compared, by name." }),
  base: z.string().optional().meta({ description: "The variant that others are held against; default: the first." }),
  metrics: z.array(z.string()).default([]).meta({
    description: "Metrics of metrics.jsonl to compare, besides the accuracy of each level where evaluate is set.",
  }),
  window: z
    .number()
    .int()
    .positive()
    .default(10)
    .meta({ description: "A metric is the mean over so many last steps." }),
  curves: z.array(z.string()).default(["reward/mean"]).meta({ description: "Metrics that are drawn by step." }),
  against: z.string().optional().meta({
    description:
      "A knob that variants differ by, such as data.train[0].limit: their figures are drawn over it as well.",
  }),
  evaluate: z.boolean().default(false).meta({
    description: "Ask every trained model all questions of data.eval, so that variants are compared by question.",
  }),
});

export type AblationSpec = z.infer<typeof ablationSchema>;

/** One variant with one seed. */
export interface Job {
  variant: string;
  seed: number;
  /** none: nothing is trained. */
  command: "grpo" | "sft" | "none";
  config: Config;
  /** The variant whose model it starts from. */
  from: string | undefined;
  /** Whether others start from its model. */
  isSource: boolean;
}

/** An ablation whose file is in order. */
export interface Ablation
  extends Pick<AblationSpec, "seeds" | "metrics" | "window" | "curves" | "against" | "evaluate" | "keepModels"> {
  runDir: string;
  parallel?: number | undefined;
  gpusPerRun: number;
  maxFailed: number;
  maxMinutes?: number | undefined;
  base: string;
  /** The variant that one is held against. */
  baseOf: (variant: string) => string;
  variants: string[];
  /** In the order in which they are begun: all variants with the first seed, then with the next. */
  jobs: Job[];
}

/** @throws ConfigError for whatever is wrong with the file, its knobs or their values */
export function readAblation(
  file: string,
  {
    set = [],
    ...changes
  }: { set?: readonly string[]; runDir?: string | undefined; parallel?: number | undefined } = {},
): Ablation {
  const spec = readSpec(file, ablationSchema, changes);
  const names = Object.keys(spec.variants);
  const base = spec.base ?? names[0];
  refuseReserved(file, "set", Object.keys(spec.set));
  if (base === undefined) throw new ConfigError(`${file}: variants: name at least one`);
  for (const name of names)
    if (!/^[\w.+-]+$/.test(name))
      throw new ConfigError(`${file}: variants: ${name}: names are made of letters, digits, . + - and _`);
  requireVariant(file, "base", base, names);
  for (const [name, own] of Object.entries(spec.variants))
    if (own.base !== undefined) requireVariant(file, `variants.${name}.base`, own.base, names);
  if (spec.metrics.length === 0 && !spec.evaluate)
    throw new ConfigError(`${file}: name metrics to compare, or set evaluate`);
  const jobs = spec.seeds.flatMap((seed) => names.map((variant) => jobOf(file, spec, set, variant, seed)));
  if (
    spec.against !== undefined &&
    !jobs.some(({ config }) => typeof knobAt(config, spec.against as string) === "number")
  )
    throw new ConfigError(`${file}: against: no variant has a number at ${spec.against}`);
  const baseOf = (variant: string) => spec.variants[variant]?.base ?? base;
  return { ...spec, base, baseOf, variants: names, jobs: sortBySource(file, jobs) };
}

function jobOf(file: string, spec: AblationSpec, set: readonly string[], variant: string, seed: number): Job {
  const own = spec.variants[variant] as AblationSpec["variants"][string];
  const at = `variants.${variant}`;
  refuseReserved(file, `${at}.set`, Object.keys(own.set));
  if (own.from !== undefined) requireVariant(file, `${at}.from`, own.from, Object.keys(spec.variants));
  const isSource = Object.values(spec.variants).some(({ from }) => from === variant);
  const command = own.command ?? spec.command;
  if (command === "none" && !spec.evaluate)
    throw new ConfigError(`${file}: ${at} trains nothing, so evaluate must be set`);
  const saved = spec.keepModels ? [] : ["trainer.saveEvery=0", `trainer.saveFinal=${spec.evaluate || isSource}`];
  const from = own.from === undefined ? [] : fromSet(spec.runDir, own.from, seed);
  try {
    const configWithout = (common: readonly string[]) =>
      loadConfig({
        files: [...spec.config, ...own.config],
        set: [...saved, ...assignments(spec.set), ...set, ...common, ...assignments(own.set), ...from, `seed=${seed}`],
      });
    const config = own.from === undefined ? configWithout([]) : withoutSources(configWithout);
    if (spec.evaluate && Object.keys(config.data.eval).length === 0)
      throw new ConfigError("evaluate is set, but data.eval is empty");
    return { variant, seed, command, config, from: own.from, isSource };
  } catch (error) {
    if (error instanceof ConfigError) throw new ConfigError(`${file}: ${at}: ${error.message}`, error.details);
    throw error;
  }
}

/**
 * The config of a variant that starts from another's model: adapters that are common to all variants were merged into that one, or trained on in it, and
 * are not added again. One that the variant itself names is another.
 */
function withoutSources(configWithout: (common: readonly string[]) => Config): Config {
  const config = configWithout(["model.adapter=null"]);
  // a knob of lora is set only where there is an adapter: it would ask for one
  return config.lora?.path === undefined ? config : configWithout(["model.adapter=null", "lora.path=null"]);
}

function fromSet(runDir: string, from: string, seed: number): string[] {
  const model = path.join(jobFolder(runDir, { variant: from, seed }), "final");
  return [`model.path=${JSON.stringify(model)}`, "model.init=pretrained"];
}

/** What a config has at a path such as trainer.klCoef or data.train[0].limit. */
export function knobAt(config: Config, knob: string): unknown {
  const steps = knob.replaceAll(/\[(\d+)\]/g, ".$1").split(".");
  return steps.reduce<unknown>((at, step) => (at as Record<string, unknown> | undefined)?.[step], config);
}

/** The run folder of a variant with a seed. */
export function jobFolder(runDir: string, { variant, seed }: Pick<Job, "variant" | "seed">): string {
  return path.join(path.resolve(runDir), `variant-${variant}`, `seed-${seed}`);
}

function requireVariant(file: string, key: string, name: string, names: readonly string[]): void {
  if (names.includes(name)) return;
  const close = nearest(name, names);
  const hint = close === undefined ? `; there are ${names.join(", ")}` : `; did you mean ${close}?`;
  throw new ConfigError(`${file}: ${key} names an unknown variant ${name}${hint}`);
}

/** Each job after the one whose model it starts from. @throws ConfigError where that goes round in a circle */
function sortBySource(file: string, jobs: readonly Job[]): Job[] {
  const sorted: Job[] = [];
  const left = [...jobs];
  while (left.length > 0) {
    const next = left.findIndex(
      ({ from, seed }) => from === undefined || sorted.some((job) => job.variant === from && job.seed === seed),
    );
    if (next === -1) throw new ConfigError(`${file}: ${left[0]?.variant} starts, over others, from its own model`);
    sorted.push(...left.splice(next, 1));
  }
  return sorted;
}
