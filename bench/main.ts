/** `npm run bench -- <name> [options]`: runs one benchmark of this folder. Results go where its `--out` says, as JSON. */

import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL(".", import.meta.url));
const names = readdirSync(folder)
  .filter((file) => file.endsWith(".ts") && file !== "main.ts")
  .map((file) => file.slice(0, -".ts".length));
const [name, ...options] = process.argv.slice(2);
if (name === undefined || !names.includes(name)) {
  process.stderr.write(`usage: npm run bench -- <name> [options]; the benchmarks are: ${names.join(", ")}\n`);
  process.exit(2);
}
// A process of its own: nothing of this one's start-up is measured.
const { status } = spawnSync(process.execPath, [...process.execArgv, `${folder}${name}.ts`, ...options], {
  stdio: "inherit",
});
process.exit(status ?? 1);
