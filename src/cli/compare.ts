import { writeFileSync } from "node:fs";
import type { Argv } from "yargs";
import { ConfigError } from "../errors.ts";
import {
  compareRuns,
  comparisonTable,
  flipText,
  overlapOf,
  overlapProblems,
  type Run,
  readRun,
} from "../eval/compare.ts";
import { changedSettings } from "../eval/settings.ts";
import { readSettings } from "./evaluation.ts";
import { countFlag } from "./options.ts";
import { openOutput } from "./output.ts";

export const command = "compare";
export const describe = "Two evaluations on the same questions: difference, paired test, the questions that flipped";

interface Flags {
  a: string;
  b: string;
  json?: string;
  flips?: string;
  show: number;
  allowSubset: boolean;
}

export function builder(yargs: Argv): Argv<Flags> {
  const folder = { type: "string", requiresArg: true, demandOption: true } as const;
  return yargs
    .usage(
      `$0 compare --a runs/eval-sft --b runs/eval-grpo\n\n${describe}.\n` +
        "A and B are run folders of eval. Intervals of B - A: Newcombe's method 10 (paired, 95 %); p: exact McNemar test.",
    )
    .option("a", { ...folder, describe: "Run folder of the first evaluation" })
    .option("b", { ...folder, describe: "Run folder of the second" })
    .option("json", { type: "string", requiresArg: true, describe: "Also write every figure to this file" })
    .option("flips", {
      type: "string",
      requiresArg: true,
      describe: "Write the questions that one alone got right, a line of JSON each",
    })
    .option("show", { type: "number", default: 10, requiresArg: true, describe: "Print so many of them" })
    .option("allow-subset", {
      type: "boolean",
      default: false,
      describe: "Compare the questions that both answered where they were not asked the same",
    }) as unknown as Argv<Flags>;
}

export function handler({ a, b, json, flips: flipFile, show, allowSubset }: Flags): void {
  countFlag("show", show, 0);
  const [runA, runB] = [answersIn(a), answersIn(b)];
  const problems = overlapProblems(overlapOf(runA, runB));
  if (problems.length > 0 && !allowSubset) {
    throw new ConfigError(
      `${a} and ${b} do not answer the same questions; --allow-subset compares those they share\n  ${problems.join("\n  ")}`,
    );
  }
  const { rows, flips } = compareRuns(runA, runB);
  if (rows.length === 0) throw new ConfigError(`${a} and ${b} have no question in common\n  ${problems.join("\n  ")}`);

  const settings = differences(a, b);
  const lines = [`A  ${a}`, `B  ${b}`, ""];
  if (problems.length > 0)
    lines.push("Only shared questions are compared:", ...problems.map((line) => `  ${line}`), "");
  if (settings.length > 0) lines.push("Settings that differ, A -> B:", ...settings.map((line) => `  ${line}`), "");
  for (const folder of [a, b].filter((one) => readSettings(one) === undefined))
    lines.push(`Settings are not compared: ${folder} has no evaluation.json that can be read.`, "");
  lines.push(comparisonTable(rows));
  lines.push("", "B - A in points; 95 % interval: Newcombe's method 10 for pairs; p: exact McNemar test, two-sided,");
  lines.push("not adjusted for the number of rows.");
  if (flips.length > 0 && show > 0) {
    lines.push("", `${flips.length} questions flipped (* right)${flips.length > show ? `, the first ${show}` : ""}:`);
    lines.push(...flips.slice(0, show).map(flipText));
  }
  process.stdout.write(`${lines.join("\n")}\n`);
  if (json !== undefined) {
    writeFileSync(json, `${JSON.stringify({ a, b, settings, overlap: overlapOf(runA, runB), rows }, null, 2)}\n`);
  }
  if (flipFile !== undefined) {
    using out = openOutput(flipFile);
    for (const flip of flips) out.writeLine(flip);
  }
}

function answersIn(folder: string): Run {
  const run = readRun(folder);
  if (Object.keys(run).length === 0)
    throw new ConfigError(`${folder} holds no answers-<level>.jsonl; name the run folder of an evaluation`);
  return run;
}

/** Settings other than the model and the questions in which two evaluations differ: what else might explain a difference. */
function differences(a: string, b: string): string[] {
  const [before, now] = [readSettings(a)?.decides, readSettings(b)?.decides];
  if (before === undefined || now === undefined) return [];
  const [settingsA, settingsB] = [before, now].map(
    ({ model: _m, questions: _q, data: { eval: _e, ...data }, ...rest }) => {
      return { ...rest, data };
    },
  );
  return changedSettings(settingsA, settingsB);
}
