import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Argv } from "yargs";

export const command = "doctor";
export const describe = "Show what this machine has, what is missing, and the command that mends it";

export function builder(yargs: Argv): Argv {
  return yargs.usage(`$0 doctor\n\n${describe}.`);
}

/** Runs scripts/doctor.mjs, which works without any package and so also where this program cannot start. */
export function handler(): void {
  const script = fileURLToPath(new URL("../../scripts/doctor.mjs", import.meta.url));
  process.exitCode = spawnSync(process.execPath, [script], { stdio: "inherit" }).status ?? 1;
}
