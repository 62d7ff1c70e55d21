/** The parity tool as far as it needs no Python: what it says without one, its cases as a function of the seed, its verdicts. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { makeInputs, makeModelFolder, SHAPES } from "../../scripts/parity/cases.ts";
import { openProcessor, prepare } from "../../scripts/parity/prepare.ts";
import { equalCell, errorCell, failures, formatTable, pairCell, type Row } from "../../scripts/parity/table.ts";
import { readConfig } from "../../src/model/qwen2vl/config.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";

const root = mkdtempSync(join(tmpdir(), "grove-parity-test-"));
afterAll(() => rmSync(root, { recursive: true }));

const main = fileURLToPath(new URL("../../scripts/parity/main.ts", import.meta.url));

test("without transformers it says what to install, once, and fails", () => {
  const env = { ...process.env, PATH: join(root, "no-programs-here") };
  const { status, stderr } = spawnSync(process.execPath, ["--import", "tsx", main], { encoding: "utf8", env });
  expect(status).toBe(1);
  expect(stderr.trim().split("\n")).toHaveLength(1);
  expect(stderr).toContain("ENOENT");
  expect(stderr).toContain("pip install torch transformers");
});

test.each([
  ["--seed", "x"],
  ["--dtype", "float16"],
])("refuses %s %s with its usage", (...args) => {
  const { status, stderr } = spawnSync(process.execPath, ["--import", "tsx", main, ...args], { encoding: "utf8" });
  expect(status).toBe(1);
  expect(stderr).toContain("usage: npm run parity");
});

test("cases are a function of the seed, and hold what is promised", async () => {
  const shape = SHAPES.tiny?.[0];
  if (shape === undefined) throw new Error("no shape");
  const run = async (name: string, seed: number) => {
    const inputs = await makeInputs(join(root, name), seed, 1);
    await makeModelFolder(join(root, name, "model"), shape, inputs);
    const processor = await openProcessor(join(root, name, "model"));
    const file = join(root, name, "ours.safetensors");
    const prepared = await prepare(processor, inputs, { file, seed, completionLengths: [3, 2] });
    return { prepared, bytes: readFileSync(file) };
  };
  const [a, b, c] = [await run("a", 1), await run("b", 1), await run("c", 2)];
  expect(a.bytes.equals(b.bytes)).toBe(true);
  expect(a.bytes.equals(c.bytes)).toBe(false);
  expect(a.prepared.map(({ text }) => text)).not.toEqual(c.prepared.map(({ text }) => text));
  const grids = a.prepared.map(({ prompt }) =>
    [prompt.images, prompt.videos].map((all) => all.map(({ grid }) => grid.join("x"))),
  );
  expect(grids).toEqual([
    [[], []],
    [["1x6x10"], []],
    [["1x6x10", "1x10x4", "1x6x4"], []],
    [[], ["2x6x8"]],
    [[], ["2x10x6", "2x6x8"]],
    [["1x10x4"], ["2x6x8"]],
    [[], ["3x4x4"]],
  ]);
  const corner = a.prepared.map(({ prompt, input }) => [
    input.corner,
    prompt.videos.some(({ grid: [t, h, w] }) => t > Math.max(h, w) / 2),
  ]);
  for (const [said, is] of corner) expect(said).toBe(is);
  using file = new SafetensorsFile(join(root, "a", "ours.safetensors"));
  expect(file.shape("5.media0.resized")).toEqual([4, 84, 112, 3]);
  const last = scope(() => file.tensor("0.completion1").toNumbers().at(-1));
  expect(readConfig(join(root, "a", "model")).eosTokenIds).toContain(last);
});

test("a cell passes at its bound, and neither beyond it nor as NaN", () => {
  expect(errorCell(1e-5, 1e-5).pass).toBe(true);
  expect(errorCell(1.01e-5, 1e-5).pass).toBe(false);
  expect(errorCell(Number.NaN, 1e-5).pass).toBe(false);
  expect(pairCell(1.1, 1, 1.1).pass).toBe(true);
  expect(pairCell(1.2, 1, 1.1).pass).toBe(false);
  expect(pairCell(Number.NaN, 1, 1.1).pass).toBe(false);
  expect(pairCell(9, 1, null).pass).toBe(null);
});

test("the table marks what fails, and leaves out what was not compared", () => {
  const rows: Row[] = [
    { shape: "s", input: "one", cells: { ids: equalCell(true), logits: errorCell(2e-5, 1e-5) } },
    { shape: "s", input: "two", cells: { ids: equalCell(false) } },
  ];
  expect(
    formatTable(rows, ["ids", "logits"])
      .split("\n")
      .map((line) => line.trimEnd()),
  ).toEqual([
    "shape  input  ids       logits",
    "-----  -----  --------  --------",
    "s      one    =         2.0e-5 !",
    "s      two    differ !  -",
  ]);
  expect(failures(rows)).toEqual(['logits of "one" (s): 2.0e-5', 'ids of "two" (s): differ']);
});
