/** Reads a file that holds one JSON list of objects, with the line each item begins on. */

import { readFile } from "node:fs/promises";
import { DataError } from "../errors.ts";
import type { JsonLine } from "./jsonl.ts";

/** @throws DataError when the file cannot be read, or is no JSON list; an item that is no object is handed to the caller instead. */
export async function* readJsonList(file: string): AsyncGenerator<JsonLine> {
  const text = await readFile(file, "utf8").catch((cause) => {
    throw new DataError({ file }, cause.code === "ENOENT" ? "no such file" : "cannot be read", cause);
  });
  let items: unknown;
  try {
    items = JSON.parse(text.replace(/^\uFEFF/, ""));
  } catch (cause) {
    throw new DataError({ file }, `malformed JSON: ${(cause as Error).message}`, cause);
  }
  if (!Array.isArray(items)) throw new DataError({ file }, `expected a JSON list, got ${text.slice(0, 60)}`);
  const places = itemPlaces(text);
  for (const [i, item] of items.entries()) {
    const place = places[i] as Place;
    const isObject = typeof item === "object" && item !== null && !Array.isArray(item);
    const problem = `expected a JSON object, got ${JSON.stringify(item).slice(0, 60)}`;
    yield {
      ...place,
      value: isObject ? (item as Record<string, unknown>) : new DataError({ file, ...place }, problem),
    };
  }
}

type Place = Omit<JsonLine, "value">;

/** Where each item of a valid JSON list begins; with the column where a neighbour begins on the same line. */
function itemPlaces(text: string): Place[] {
  const places: Required<Place>[] = [];
  let line = 1;
  let lineStart = 0;
  let depth = 0;
  let inString = false;
  let awaitsItem = false; // behind the list's "[" or one of its commas
  for (let i = 0; i < text.length; i++) {
    const character = text[i] as string;
    if (character === "\n") {
      line++;
      lineStart = i + 1;
    }
    if (inString) {
      if (character === "\\") i++;
      else if (character === '"') inString = false;
      continue;
    }
    if (awaitsItem && !/[\s\]]/.test(character)) {
      places.push({ line, column: i - lineStart + 1 });
      awaitsItem = false;
    }
    if (character === '"') inString = true;
    else if (character === "[" || character === "{") awaitsItem = ++depth === 1;
    else if (character === "]" || character === "}") depth--;
    else if (character === "," && depth === 1) awaitsItem = true;
  }
  return places.map(({ line, column }, i) => {
    const shared = line === places[i - 1]?.line || line === places[i + 1]?.line;
    return shared ? { line, column } : { line };
  });
}
