/** What the YAML files of sweeps and ablations have in common, and how such a file is read and checked. */

import { z } from "zod";
import { nearest } from "../config/nearest.ts";
import { parseYaml, readText } from "../config/yaml.ts";
import { ConfigError } from "../errors.ts";

const positive = () => z.number().int().positive();

/** Which number of a run counts, and which way. */
export const objectiveSchema = z.strictObject({
  metric: z.string().meta({ description: "A metric of metrics.jsonl, such as reward/mean or eval/L1/accuracy." }),
  goal: z.enum(["maximize", "minimize"]).default("maximize").meta({ description: "Whether more or less is better." }),
  window: positive()
    .default(10)
    .meta({ description: "The mean over so many steps up to the last one that has the metric; 1 takes that alone." }),
});

/** Knobs by path: `{ trainer.klCoef: 0.04 }`. */
export const knobValues = z.record(z.string(), z.unknown());

/** Keys that both kinds of files have. */
export const commonKeys = {
  command: z.enum(["grpo", "sft"]).default("grpo").meta({ description: "What a run is." }),
  config: z
    .union([z.string().transform((file) => [file]), z.array(z.string()).min(1)], {
      error: "expected a config file or a list of them",
    })
    .meta({ description: "Config file or files of every run, later ones win." }),
  set: knobValues.default({}).meta({ description: "Knobs of every run, over those of the config." }),
  runDir: z.string().meta({ description: "Folder of everything: journal, runs, results." }),
  seeds: z
    .array(z.number().int().nonnegative())
    .min(1)
    .refine((seeds) => new Set(seeds).size === seeds.length, "the same seed twice is the same run twice")
    .default([42])
    .meta({ description: "Repeats: each setting is run once with each seed, and counts by its mean." }),
  parallel: positive()
    .optional()
    .meta({ description: "How many at the same time; default: one on the CPU, one for each GPU on cuda." }),
  gpusPerRun: positive().default(1).meta({ description: "GPUs of a run, on cuda." }),
  keepModels: z
    .boolean()
    .default(false)
    .meta({ description: "Let runs save checkpoints and trained models, as their config says." }),
  maxMinutes: z
    .number()
    .positive()
    .max(30_000) // 20 days; beyond 24 a timer would end at once
    .optional()
    .meta({ description: "A run that takes longer has failed and is ended; not set: no limit." }),
  maxFailed: z
    .number()
    .int()
    .nonnegative()
    .default(5)
    .meta({ description: "More failed runs than this end the whole; what has run is kept." }),
};

export type Objective = z.infer<typeof objectiveSchema>;
export type CommonSpec = z.infer<z.ZodObject<typeof commonKeys>>;

/**
 * Reads a YAML file by its schema. `changes` (flags of the command line) win over the file's keys.
 * @throws ConfigError with the file, the key and, for a key that is not known, the nearest one
 */
export function readSpec<S extends z.ZodObject>(
  file: string,
  schema: S,
  changes: Readonly<Record<string, unknown>> = {},
): z.infer<S> {
  const { value } = parseYaml(readText(file, "file"), file);
  if (typeof value !== "object" || Array.isArray(value))
    throw new ConfigError(`${file}: expected a mapping of keys, got ${JSON.stringify(value).slice(0, 60)}`, { file });
  const given = Object.entries(changes).filter(([, value]) => value !== undefined);
  const result = schema.safeParse({ ...value, ...Object.fromEntries(given) });
  if (result.success) return result.data;
  throw new ConfigError(result.error.issues.map((issue) => `${file}: ${issueText(issue, schema)}`).join("\n"));
}

function issueText(issue: z.core.$ZodIssue, schema: z.ZodObject): string {
  const at = issue.path.join(".");
  if (issue.code === "unrecognized_keys") {
    return issue.keys
      .map((key) => {
        const close = issue.path.length === 0 ? nearest(key, Object.keys(schema.shape)) : undefined;
        return `unknown key ${[...issue.path, key].join(".")}${close === undefined ? "" : `; did you mean ${close}?`}`;
      })
      .join(", ");
  }
  if (issue.code === "invalid_type" && /received undefined$/.test(issue.message)) return `${at} is required`;
  return `${at}: ${issue.message.replace(/^(Invalid input|Too small|Too big|Invalid option): /, "")}`;
}

/** `trainer.klCoef=0.04`, as --set takes it. JSON is YAML too. */
export function assignment(knob: string, value: unknown): string {
  return `${knob}=${JSON.stringify(value)}`;
}

/** Knobs by path as --set takes them. */
export function assignments(values: Readonly<Record<string, unknown>>): string[] {
  return Object.entries(values).map(([knob, value]) => assignment(knob, value));
}

/** Knobs that belong to the experiment, and where it takes them from. */
const RESERVED: Readonly<Record<string, string>> = {
  runDir: "every run has a folder of its own below the file's runDir",
  seed: "the file's seeds are the repeats of every setting",
};

/** @throws ConfigError for a knob that the experiment sets itself */
export function refuseReserved(file: string, section: string, knobs: readonly string[]): void {
  for (const knob of knobs) {
    const reason = RESERVED[knob];
    if (reason !== undefined) throw new ConfigError(`${file}: ${section}.${knob} cannot be set here: ${reason}`);
  }
}
