/** YAML files of knobs and of experiments, as text and as what they say. */

import { readFileSync } from "node:fs";
import YAML from "yaml";
import { ConfigError } from "../errors.ts";

export interface YamlText {
  document: YAML.Document.Parsed;
  value: unknown;
  /** Finds the line of a place in the text. */
  lines: YAML.LineCounter;
}

/** @throws ConfigError where there is no such file, or it cannot be read; `what` it is that was not found */
export function readText(file: string, what: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new ConfigError(`${file}: ${missing ? `no such ${what}` : (error as Error).message}`, { file });
  }
}

/** @throws ConfigError with file and line for what is no YAML, and for an alias without an anchor */
export function parseYaml(text: string, file: string): YamlText {
  const lines = new YAML.LineCounter();
  const document = YAML.parseDocument(text, { lineCounter: lines });
  const [error] = document.errors;
  if (error !== undefined)
    throw new ConfigError(`${file}:${error.linePos?.[0].line ?? 1}: not valid YAML: ${firstLine(error)}`, { file });
  try {
    return { document, value: document.toJS(), lines };
  } catch (error) {
    throw new ConfigError(`${file}: not valid YAML: ${firstLine(error as Error)}`, { file });
  }
}

/** What a message of the parser says above the lines that it quotes. */
export function firstLine({ message }: Error): string {
  return (message.split("\n")[0] as string).replace(/:$/, "");
}
