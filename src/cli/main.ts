#!/usr/bin/env node
/** The command line: `grove <command>`. Each command has a file here that parses its flags, builds what is needed and calls it. */

import { realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import yargs, { type Argv } from "yargs";
import * as ablation from "./ablation.ts";
import * as checkData from "./check-data.ts";
import * as compare from "./compare.ts";
import * as doctor from "./doctor.ts";
import * as evaluate from "./eval.ts";
import { StoppedError } from "./experiment.ts";
import * as exportModel from "./export.ts";
import * as generate from "./generate.ts";
import * as grpo from "./grpo.ts";
import * as inspect from "./inspect.ts";
import * as makeDataset from "./make-dataset.ts";
import * as quickstart from "./quickstart.ts";
import { renderError } from "./render-error.ts";
import * as score from "./score.ts";
import * as sft from "./sft.ts";
import * as sweep from "./sweep.ts";
import { explain, flagNames, refuseValues, UsageError } from "./usage.ts";

const commands = [
  grpo,
  sft,
  evaluate,
  compare,
  sweep,
  ablation,
  generate,
  score,
  inspect,
  exportModel,
  makeDataset,
  checkData,
  doctor,
  quickstart,
];

/** Names of all commands, in the order of the help text. */
export const commandNames = commands.map(({ command }) => command);

/** The parser with every command; `exit` is left to the caller. */
export function cli(args: readonly string[]): Argv {
  const parser = yargs([...args])
    .scriptName("grove")
    .usage("$0 <command>\n\nReinforcement learning (GRPO) for video-language models.")
    .parserConfiguration({ "dot-notation": false, "duplicate-arguments-array": true, "boolean-negation": true })
    .demandCommand(1, "Name a command.")
    .detectLocale(false) // all else that is printed is English, and explain() reads the parser's messages
    .strict()
    .strictCommands()
    .wrap(Math.min(120, process.stdout.columns ?? 120))
    .version(false)
    .exitProcess(false)
    .check(refuseValues(args), true)
    .fail((message, error) => {
      throw error ?? new UsageError(explain(message, args, { commands: commandNames, flags: flagNames(parser) }));
    });
  for (const { command, describe, builder, handler } of commands) {
    parser.command(command, describe, builder as never, handler as never);
  }
  return parser;
}

/** Runs a command line and returns the exit status: 0, 1 after an error that was printed, or that of an experiment that a signal stopped. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    await cli(args).parseAsync();
    return 0;
  } catch (error) {
    if (error instanceof StoppedError) {
      process.stderr.write(`${error.message}\n`);
      return error.status;
    }
    const text =
      error instanceof UsageError ? `${error.message}\n  hint: --help shows what can be given` : renderError(error);
    process.stderr.write(`${text}\n`);
    return 1;
  }
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  // `grove score | head`: whoever reads the output may leave early.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  process.exitCode = await main(process.argv.slice(2));
}
