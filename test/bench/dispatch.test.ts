/** The dispatch benchmark measures all sides in one run and writes what it measured. Not a timing test: machines differ. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { run } from "../../bench/dispatch.ts";

test("every side has a spread, and the file holds the result", async () => {
  const folder = mkdtempSync(join(tmpdir(), "grove-bench-"));
  const out = join(folder, "new", "dispatch.json");
  const lines: string[] = [];
  const result = await run({ device: "cpu", calls: 500, repeats: 3, out, log: (line) => lines.push(line) });
  expect(JSON.parse(readFileSync(out, "utf8"))).toEqual(result);
  rmSync(folder, { recursive: true });
  for (const spread of Object.values(result.microseconds)) {
    if (spread === null) continue; // no Python with torch here
    expect(spread.min).toBeGreaterThan(0);
    expect(spread.median).toBeGreaterThanOrEqual(spread.min);
    expect(spread.max).toBeGreaterThanOrEqual(spread.median);
  }
  expect(result.typescriptOverCpp).toBeCloseTo(result.microseconds.typescript.median / result.microseconds.cpp.median);
  expect(lines.length).toBe(6);
});
