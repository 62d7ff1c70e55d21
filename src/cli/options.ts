/** Flags that every command with a config shares, and how they become a config. */

import type { Argv } from "yargs";
import { withNamedBase } from "../config/adapter-folder.ts";
import { dumpConfig, loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { ConfigError } from "../errors.ts";
import type { Stage } from "../trainer/plan.ts";
import type { PlanPlace } from "./memory.ts";

export interface ConfigFlags {
  config: string[];
  set: string[];
  device?: string | undefined;
  dtype?: string | undefined;
  seed?: number | undefined;
  runDir?: string | undefined;
  dryRun: boolean;
}

/** Adds --config, --set, --device, --dtype, --seed, --run-dir and --dry-run to a command. */
export function withConfigFlags<T>(command: Argv<T>): Argv<T & ConfigFlags> {
  return command
    .option("config", repeated("YAML file of knobs; may be repeated, later files win", ["c"]))
    .option("set", repeated("Set one knob: --set trainer.klCoef=0.04; may be repeated, values are YAML", ["s"]))
    .option("device", { type: "string", requiresArg: true, describe: "cpu, cuda or cuda:N" })
    .option("dtype", { type: "string", requiresArg: true, describe: "float32 or bfloat16" })
    .option("seed", { type: "number", requiresArg: true, describe: "Key of every random draw" })
    .option("run-dir", { type: "string", requiresArg: true, describe: "Folder that the run writes to" })
    .option("dry-run", {
      type: "boolean",
      default: false,
      describe: "Print the plan, where a command has one, and the resolved config as YAML, and stop",
    })
    .group(["config", "set", "device", "dtype", "seed", "run-dir", "dry-run"], "Config:") as unknown as Argv<
    T & ConfigFlags
  >;
}

/**
 * The config that the flags ask for. `base` holds files and assignments that come before the user's (a command's own defaults).
 * @throws ConfigError as `loadConfig` does
 */
export function configFrom(flags: ConfigFlags, base: { files?: string[]; set?: string[] } = {}): Config {
  const config = loadConfig({
    files: [...(base.files ?? []), ...flags.config],
    set: [...(base.set ?? []), ...flags.set],
    flags: { device: flags.device, dtype: flags.dtype, seed: flags.seed, runDir: flags.runDir },
  });
  return withNamedBase(config);
}

/** Loads the config; with --dry-run prints it and returns undefined, so that the command stops there. */
export function configToRun(flags: ConfigFlags, base?: { files?: string[]; set?: string[] }): Config | undefined {
  const config = configFrom(flags, base);
  if (!flags.dryRun) return config;
  process.stdout.write(dumpConfig(config));
  return undefined;
}

export interface PlanFlags extends ConfigFlags, PlanPlace {}

/** Adds --device-memory to a command that has a plan. */
export function withPlanFlags<T>(command: Argv<T>): Argv<T> {
  return command.option("device-memory", {
    type: "number",
    requiresArg: true,
    describe: "With --dry-run: plan for GPUs of so many GiB, e.g. 40 for an A100-40GB, whatever is in this machine",
  }) as unknown as Argv<T>;
}

/**
 * As configToRun for the commands that train or evaluate: --dry-run prints their plan too, as comments above the YAML.
 * @throws MemoryError where the GPUs that the plan is for, or without --dry-run those of this machine, have not the memory; with --dry-run also what the
 *   reward functions of the user's own throw when they are loaded
 */
export async function configOrPlan(flags: PlanFlags, stage: Stage): Promise<Config | undefined> {
  const config = configFrom(flags);
  const { deviceMemory, dryRun } = flags;
  if (deviceMemory !== undefined && !(deviceMemory > 0 && dryRun))
    throw new ConfigError(`--device-memory ${deviceMemory}: expected GiB above 0, together with --dry-run`);
  const { planDevice, refuseWhatCannotFit } = await import("./memory.ts");
  if (!dryRun) {
    await refuseWhatCannotFit(stage, config, flags);
    return config;
  }
  const { makePlan } = await import("../trainer/plan-text.ts");
  const { lines, refusal } = await makePlan(stage, config, planDevice(stage, config, flags));
  process.stdout.write(lines.map((line) => `# ${line}\n`).join("") + dumpConfig(config));
  if (refusal !== null) throw refusal;
  if (stage === "grpo") await (await import("../reward/rewards.ts")).checkRewardFunctions(config.rewards);
  return undefined;
}

/** A number of things, as a flag gives it. @throws ConfigError for anything but a whole number that is `least` or more */
export function countFlag<T extends number | undefined>(name: string, value: T, least: 0 | 1 = 1): T {
  if (value !== undefined && (!Number.isInteger(value) || value < least))
    throw new ConfigError(`--${name} must be a whole number ${least === 0 ? "that is 0 or more" : "above 0"}`);
  return value;
}

/** A string flag that may be given several times, one value each time. */
function repeated(describe: string, alias: string[]) {
  return {
    type: "string",
    array: true,
    nargs: 1,
    default: [] as string[],
    defaultDescription: "none",
    alias,
    describe,
  } as const;
}
