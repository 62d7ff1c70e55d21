/** Flags that every command with a config shares, and how they become a config. */

import type { Argv } from "yargs";
import { dumpConfig, loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import type { Stage } from "../trainer/plan.ts";

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
  return loadConfig({
    files: [...(base.files ?? []), ...flags.config],
    set: [...(base.set ?? []), ...flags.set],
    flags: { device: flags.device, dtype: flags.dtype, seed: flags.seed, runDir: flags.runDir },
  });
}

/** Loads the config; with --dry-run prints it and returns undefined, so that the command stops there. */
export function configToRun(flags: ConfigFlags, base?: { files?: string[]; set?: string[] }): Config | undefined {
  const config = configFrom(flags, base);
  if (!flags.dryRun) return config;
  process.stdout.write(dumpConfig(config));
  return undefined;
}

/** As configToRun for the commands that train or evaluate: --dry-run prints their plan too, as comments above the YAML. */
export async function configOrPlan(flags: ConfigFlags, stage: Stage): Promise<Config | undefined> {
  const config = configFrom(flags);
  if (!flags.dryRun) return config;
  const { planLines } = await import("../trainer/plan-text.ts");
  const plan = (await planLines(stage, config)).map((line) => `# ${line}\n`);
  process.stdout.write(plan.join("") + dumpConfig(config));
  return undefined;
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
