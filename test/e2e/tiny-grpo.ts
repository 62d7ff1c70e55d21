/**
 * One training process for the kill and resume tests: `node --import tsx test/e2e/tiny-grpo.ts <config.yaml> [--resume]`. Prints a line per step.
 */

import { loadConfig } from "../../src/config/load.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";

const [file, flag] = process.argv.slice(2) as [string, string | undefined];
const result = await trainGrpo(loadConfig({ files: [file] }), {
  resume: flag === "--resume",
  onProgress: ({ step }) => process.stdout.write(`step ${step}\n`),
});
process.stdout.write(result.finished ? "finished\n" : `stopped at ${result.step}\n`);
