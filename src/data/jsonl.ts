/** Reads JSON Lines: one object a line, blank lines left out, line numbers kept for messages. */

import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import { DataError } from "../errors.ts";

/** Read as a stream, since the file of this name cannot be opened where a socket stands behind it (a child of another Node). */
export const STANDARD_INPUT = "/dev/stdin";

export interface JsonLine {
  line: number; // from 1
  /** From 1; only where several objects share the line. */
  column?: number;
  /** The object, or what is wrong with the line. */
  value: Record<string, unknown> | DataError;
}

/** @throws DataError when the file cannot be read; a malformed line is handed to the caller instead. */
export async function* readJsonLines(file: string): AsyncGenerator<JsonLine> {
  let line = 0;
  try {
    const input = file === STANDARD_INPUT ? process.stdin.setEncoding("utf8") : createReadStream(file, "utf8");
    for await (const text of linesOf(input)) {
      line++;
      const content = line === 1 ? text.replace(/^\uFEFF/, "") : text;
      if (content.trim() !== "") yield { line, value: parse(file, line, content) };
    }
  } catch (cause) {
    const problem = (cause as NodeJS.ErrnoException).code === "ENOENT" ? "no such file" : "cannot be read";
    throw cause instanceof DataError ? cause : new DataError({ file }, problem, cause);
  }
}

/**
 * The lines of a stream of text, cut at \n, \r\n and \r. Not by node:readline, which from Node 24 on also cuts at U+2028 and U+2029: JSON may hold those
 * inside a string.
 */
async function* linesOf(input: Readable): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of input) {
    rest += chunk as string;
    if (!/[\r\n]/.test(chunk as string)) continue;
    const lines = rest.split(/\r\n|\n|\r(?=[^\n])/); // a \r at the end may be half of a \r\n
    rest = lines.pop() as string;
    yield* lines;
  }
  if (rest !== "") yield* rest.split(/\r(?=.)/s); // one that stood at the end of a chunk may not have been half of a \r\n
}

function parse(file: string, line: number, text: string): Record<string, unknown> | DataError {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
    return new DataError({ file, line }, `expected a JSON object, got ${text.slice(0, 60)}`);
  } catch (cause) {
    return new DataError({ file, line }, `malformed JSON: ${(cause as Error).message}`, cause);
  }
}
