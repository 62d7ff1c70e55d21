/**
 * Stands in for `grpo` in the tests of sweeps and ablations: reads the config it is given, writes a line of metrics a step from a known function of
 * the knobs, and ends with the line of JSON. Every start is noted in the file that FAKE_STARTS names. A learning rate of 1 fails.
 */

import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parse } from "yaml";

const [command, ...flags] = process.argv.slice(2);
const flag = (name) => flags[flags.indexOf(name) + 1];
const config = parse(readFileSync(flag("--config"), "utf8"));
const runDir = flag("--run-dir");
const parent = process.ppid;
mkdirSync(runDir, { recursive: true });
if (process.env.FAKE_STARTS) appendFileSync(process.env.FAKE_STARTS, `${runDir}\n`);
if (config.optimizer.learningRate === 1) {
  process.stderr.write("error [NUMERICS] loss is NaN\n");
  process.exit(1);
}
process.on("SIGTERM", () => process.exit(0));
const distance = Math.abs(Math.log10(config.optimizer.learningRate) + 3) + 2 * config.trainer.klCoef;
const steps = config.trainer.steps;
for (let step = 1; step <= steps; step++) {
  await sleep(Number(process.env.FAKE_STEP_MS ?? 1));
  if (process.ppid !== parent) process.exit(1);
  const value = 1 / (1 + distance) + 0.001 * (config.seed % 7) + 0.01 * (step / steps);
  appendFileSync(`${runDir}/metrics.jsonl`, `${JSON.stringify({ step, "reward/accuracy": value })}\n`);
}
process.stdout.write(`${JSON.stringify({ command, finished: true, step: steps })}\n`);
