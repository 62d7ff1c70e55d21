import path from "node:path";
import type { Argv } from "yargs";
import { renderDataset } from "../data/rendered/make-dataset.ts";
import { type ConfigFlags, configToRun, withConfigFlags } from "./options.ts";
import { Progress } from "./progress.ts";

export const command = "make-dataset";
export const describe = "Render a data set of real mp4 videos with planning questions, in SEED-Bench-R1's format";

interface Flags extends ConfigFlags {
  out: string;
}

export function builder(yargs: Argv): Argv<Flags> {
  return withConfigFlags(
    yargs
      .usage(
        `$0 make-dataset --out folder\n\n${describe}.\nSizes: the config's section rendered; the seed decides every pixel.`,
      )
      .option("out", { type: "string", requiresArg: true, default: "data/rendered", describe: "Folder to write to" }),
  );
}

export async function handler(flags: Flags): Promise<void> {
  // No model takes part, so model.path need not be set.
  const config = configToRun(flags, { set: ["model.path=unused"] });
  if (config === undefined) return;
  using progress = new Progress();
  const made = await renderDataset(flags.out, { seed: config.seed, ...config.rendered }, (tick) =>
    progress.part({ label: "videos", ...tick }),
  );
  progress.stop();
  const files = [made.training, made.sft, made.solved, ...Object.values(made.validation)].map((file) =>
    path.relative(".", file),
  );
  process.stdout.write(
    `${made.rendered} videos rendered into ${path.relative(".", made.folder)}\n${files.join("\n")}\n`,
  );
}
