/** docs/algorithm.md leads from symbols to functions: every file and every name in its table must exist. */

import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const rows = readFileSync(path.join(root, "docs/algorithm.md"), "utf8")
  .split("\n")
  .filter((line) => line.startsWith("|") && !/^\|(-|\s*(symbol|loss|advantage) \|)/.test(line));

/** `file`: `name`, `name`; `file`: ... */
const places = rows.flatMap((row) => {
  const where = row.split("|").at(-2) ?? "";
  let file = "";
  return [...where.matchAll(/`([^`]+)`/g)].map(([, text]) => {
    const isFile = /[/.](ts|cc)$/.test(text as string);
    if (isFile) file = text as string;
    return { file, name: isFile ? "" : (text as string).split(".").at(-1) };
  });
});

test("the table is there", () => {
  expect(rows.length).toBeGreaterThan(20);
  expect(places.every(({ file }) => file !== "")).toBe(true);
});

test.each(places.map(({ file, name }) => [file, name]))("%s %s", (file, name) => {
  expect(existsSync(path.join(root, file as string))).toBe(true);
  expect(readFileSync(path.join(root, file as string), "utf8")).toMatch(new RegExp(`\\b${name}\\b`));
});
