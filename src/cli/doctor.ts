import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Argv } from "yargs";
import type { Config } from "../config/schema.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";

export const command = "doctor";
export const describe = "Show what this machine has, what is missing, and the command that mends it";

export function builder(yargs: Argv): Argv<ConfigFlags> {
  return withConfigFlags(
    yargs.usage(
      `$0 doctor [--config file.yaml]\n\n${describe}. With a config also whether the files it names are there.`,
    ),
  );
}

/** Runs scripts/doctor.mjs, which works without any package and so also where this program cannot start. */
export function handler(flags: ConfigFlags): void {
  const hasConfig = flags.config.length > 0 || flags.set.length > 0;
  const config = hasConfig || flags.dryRun ? configToRun(flags) : undefined;
  if (flags.dryRun) return;
  const script = fileURLToPath(new URL("../../scripts/doctor.mjs", import.meta.url));
  process.exitCode = spawnSync(process.execPath, [script], { stdio: "inherit" }).status ?? 1;
  if (config === undefined) return;
  const missing = [...new Set(filesOf(config))].filter((file) => !existsSync(file));
  process.stdout.write(
    missing.length === 0 ? "\nconfig: every file is there\n" : `\nconfig: missing\n  ${missing.join("\n  ")}\n`,
  );
  if (missing.length > 0) process.exitCode = 1;
}

/** Files that a run with this config opens first. */
function filesOf({ model, lora, data, rewards }: Config): string[] {
  const sets = [...data.train, ...Object.values(data.eval)];
  return [
    path.join(model.path, "config.json"),
    path.join(model.path, "tokenizer.json"),
    ...[model.adapter, lora?.path].flatMap((adapter) => adapter ?? []),
    ...sets.flatMap(({ file, mediaRoot }) => (mediaRoot === undefined ? [file] : [file, mediaRoot])),
    ...rewards.flatMap(({ path, python }) => path ?? python?.match(/^(.+\.py):/)?.[1] ?? []),
  ];
}
