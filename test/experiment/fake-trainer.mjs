/**
 * Stands in for `grpo` in the tests of sweeps and ablations: reads the config it is given, writes a line of metrics a step from a known function of
 * the knobs, and ends with the line of JSON; and for `eval`. Every start is noted in the file that FAKE_STARTS names. A learning rate of 1 fails.
 */

import { appendFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
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
if (command === "eval") {
  // The better the setting, the more of the same 40 questions are right; which ones differ by seed. The reasoning of every fourth names the other answer.
  const model = flags.find((text) => text.startsWith("model.path="));
  if (model !== undefined) readFileSync(`${JSON.parse(model.slice("model.path=".length))}/knobs.json`);
  if (model !== undefined && config.model.adapter !== undefined && !flags.includes("model.adapter=null"))
    throw new Error("model.adapter would be merged into the trained model once more");
  const share = 1 - config.trainer.klCoef * 5;
  const answers = Array.from({ length: 40 }, (_, i) => {
    const right = ((i * 17 + config.seed * 3) % 40) / 40 < share;
    return {
      sample_id: `q${i}`,
      problem: `question ${i}\nA. yes\nB. no`,
      solution: "A",
      response: `<think>${right === (i % 4 > 0) ? "yes" : "no"}</think><answer>${right ? "A" : "B"}</answer>`,
      reward: right ? 1 : 0,
    };
  });
  writeFileSync(`${runDir}/answers-L1.jsonl`, answers.map((answer) => `${JSON.stringify(answer)}\n`).join(""));
  process.exit(0);
}
process.on("SIGTERM", () => process.exit(0));
const distance = Math.abs(Math.log10(config.optimizer.learningRate) + 3) + 2 * config.trainer.klCoef;
const steps = config.trainer.steps;
for (let step = 1; step <= steps; step++) {
  await sleep(Number(process.env.FAKE_STEP_MS ?? 1));
  if (process.ppid !== parent) process.exit(1);
  const value = 1 / (1 + distance) + 0.001 * (config.seed % 7) + 0.01 * (step / steps);
  const metric = command === "sft" ? "loss/sft" : "reward/accuracy";
  appendFileSync(`${runDir}/metrics.jsonl`, `${JSON.stringify({ step, [metric]: value })}\n`);
}
if (config.trainer.saveFinal) {
  mkdirSync(`${runDir}/final`);
  mkdirSync(`${runDir}/checkpoint-${steps}`);
  symlinkSync(`checkpoint-${steps}`, `${runDir}/best`);
  writeFileSync(`${runDir}/final/knobs.json`, JSON.stringify({ from: config.model.path }));
}
process.stdout.write(`${JSON.stringify({ command, finished: true, step: steps })}\n`);
