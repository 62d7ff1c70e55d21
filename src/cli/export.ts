import { readdirSync, statSync } from "node:fs";
import path from "node:path";
import type { Argv } from "yargs";
import { mergedAdapters } from "../config/merged-adapters.ts";
import { ConfigError } from "../errors.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";

export const command = "export";
export const describe = "Write a model as a Hugging Face folder of its own, an adapter merged into it";

interface Flags extends ConfigFlags {
  out: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 export --set model.path=runs/a/best/adapter --out folder\n\n${describe}.\n` +
          "What model.path (with model.adapter) is read as: of a checkpoint its model/ or, of a run with lora, its adapter/. Weights in the config's dtype, " +
          "with tokenizer and processor files, as a run's final/.",
      )
      .option("out", { type: "string", requiresArg: true, demandOption: true, describe: "Folder to write" }),
  );
}

export async function handler(flags: Flags): Promise<void> {
  const config = configToRun(flags);
  if (config === undefined) return;
  const out = path.resolve(flags.out);
  const there = statSync(out, { throwIfNoEntry: false });
  if (there !== undefined && !there.isDirectory())
    throw new ConfigError(`--out ${flags.out}: is a file; name a folder that is new or empty`);
  if (there !== undefined && readdirSync(out).length > 0)
    throw new ConfigError(`--out ${flags.out}: the folder is not empty; name another one`);
  const { applyDevice, openModel } = await import("../trainer/assemble.ts");
  const { savePolicy } = await import("../trainer/policy.ts");
  const { replaceFolder } = await import("../trainer/files.ts");
  applyDevice(config);
  const adapters = mergedAdapters(config);
  using model = openModel(config);
  replaceFolder(out, (temporary) => savePolicy(model, temporary, config, { merged: adapters }));
  const { adapter } = config.model;
  const merged = adapter === undefined ? "" : ` with ${adapter} merged into it`;
  process.stdout.write(`${flags.out}: ${config.model.path}${merged}, ${config.dtype}\n`);
}
