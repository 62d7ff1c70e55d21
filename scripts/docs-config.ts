/** Writes docs/config.md from the schema (`npm run docs`); with --check only compares, and fails when the file is out of date. */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { configReference } from "../src/config/describe.ts";

const file = fileURLToPath(new URL("../docs/config.md", import.meta.url));
const wanted = configReference();

if (!process.argv.includes("--check")) {
  writeFileSync(file, wanted);
  process.stdout.write("wrote docs/config.md\n");
} else if (!existsSync(file) || readFileSync(file, "utf8") !== wanted) {
  process.stderr.write("docs/config.md does not match src/config/schema.ts; run: npm run docs\n");
  process.exitCode = 1;
} else {
  process.stdout.write("docs/config.md is up to date\n");
}
