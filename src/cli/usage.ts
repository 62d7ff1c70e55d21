/** What is wrong with a command line, in more words than the parser has. */

import { knobCalled } from "../config/aliases.ts";
import { nearest } from "../config/nearest.ts";
import { nodeAt } from "../config/schema-tree.ts";

/** A command line that cannot be understood. */
export class UsageError extends Error {}

/** What the parser knows of a command's flags; not in its types. */
interface ParserOptions {
  array: readonly string[];
  number: readonly string[];
  key: Readonly<Record<string, unknown>>; // of all flags, as they were declared
}

/** The names of a parser's flags: those of the command that it has come to. */
export function flagNames(parser: unknown): string[] {
  return Object.keys((parser as { getOptions(): ParserOptions }).getOptions().key);
}

/** The parser's message, with what was likely meant for each name in it that it does not know. */
export function explain(
  message: string,
  args: readonly string[],
  { commands, flags }: { commands: readonly string[]; flags: readonly string[] },
): string {
  const [, names] = /^Unknown (?:command|argument)s?: (.*)$/.exec(message) ?? [];
  if (names === undefined) return message;
  const problems = names.split(", ").map((name) => {
    const dashes = args.map((arg) => /^(--?)(no-)?([^=]*)/.exec(arg)).find((flag) => flag?.[3] === name)?.[1];
    const isCommand = dashes === undefined && args[0] === name;
    const close = dashes === "--" ? flagMeant(name, flags) : isCommand ? nearest(name, commands) : undefined;
    const what = `Unknown ${isCommand ? "command" : "argument"}: ${dashes ?? ""}${name}`;
    return close === undefined ? `${what}.` : `${what}; did you mean ${close}?`;
  });
  return problems.join("\n");
}

function flagMeant(name: string, flags: readonly string[]): string | undefined {
  const knob = nodeAt(name.split(".")) === undefined ? knobCalled(name) : name;
  if (knob !== undefined) return `--set ${knob}=...`;
  const close = nearest(name, flags);
  return close === undefined ? undefined : `--${close}`;
}

/** Refuses a flag that takes one value and is given twice, which would be a list where nobody expects one, and a number that is none. */
export function refuseValues(args: readonly string[]) {
  return (flags: Readonly<Record<string, unknown>>, options: unknown): true => {
    const { array, number } = options as ParserOptions;
    const twice = Object.keys(flags).find(
      (name) => name !== "_" && Array.isArray(flags[name]) && !array.includes(name),
    );
    if (twice !== undefined) throw new UsageError(`--${twice} is given more than once.`);
    const none = number.find((name) => Number.isNaN(flags[name]));
    if (none !== undefined) throw new UsageError(`--${none} ${textOf(none, args)}: expected a number.`);
    return true;
  };
}

/** What a command line gives for a flag, as it is written there. */
function textOf(flag: string, args: readonly string[]): string {
  const at = args.findIndex((arg) => arg === `--${flag}` || arg.startsWith(`--${flag}=`));
  const [, inside] = /=(.*)/s.exec(args[at] ?? "") ?? [];
  return inside ?? args[at + 1] ?? "";
}
