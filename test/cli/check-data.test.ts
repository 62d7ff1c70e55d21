import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { main } from "../../src/cli/main.ts";
import type { DataReport } from "../../src/data/check-data.ts";
import { qwen2VlFolder } from "../data/helpers.ts";
import { captureOutput } from "./capture.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-check-"));
const at = (name: string) => path.join(folder, name);
afterAll(() => rmSync(folder, { recursive: true }));

const { out, err } = captureOutput();

beforeAll(async () => {
  await sharp({ create: { width: 60, height: 40, channels: 3, background: "red" } })
    .png()
    .toFile(at("red.png"));
  const record = { question: "Which?", options: ["x", "y"], answer: "x" };
  const lines = ["red", "gone", "gone-too"].map((name) => JSON.stringify({ ...record, image: `${name}.png` }));
  writeFileSync(at("q.jsonl"), `${lines.join("\n")}\n`);
});

const check = (...flags: string[]) =>
  main([
    "check-data",
    ...["--set", `model.path=${qwen2VlFolder()}`, "--set", `data.cacheDir=${at("cache")}`],
    ...["--set", `data.train=[{file: ${at("q.jsonl")}, format: generic}]`, ...flags],
  ]);

test("faults that stop a run: all of them in the report, status 1, one readable message", async () => {
  expect(await check("--json", at("report.json"))).toBe(1);
  expect(out.text).toContain("! missing media: 2");
  expect(out.text).toContain(`${at("q.jsonl")}:2: ${at("gone.png")}: no such file`);
  expect(out.text).toContain("a run would stop:\n  2 bad records, and data.onBadSample is error");
  expect(err.text).toContain("error [CHECK] a fault would stop a run");
  expect(err.text).not.toMatch(/\n\s+at /);
  const report = JSON.parse(readFileSync(at("report.json"), "utf8")) as DataReport;
  expect(report.bad).toEqual({ train: 2, eval: 0 });
  expect(report.sets[0]?.promptTokens?.max).toBeGreaterThan(50);
});

test("faults that a run skips: status 0, and whether maxBadSamples is enough", async () => {
  expect(await check("--set", "data.onBadSample=skip")).toBe(0);
  expect(out.text).toContain(
    "skipped by a run: 2 training and 0 evaluation records; data.maxBadSamples, 100, is enough",
  );
  expect(await check("--set", "data.onBadSample=skip", "--set", "data.maxBadSamples=1")).toBe(1);
  expect(out.text).toContain("is not enough");
});

test.each([
  ["accuracy", 1],
  ["math", 1],
  ["format", 0],
])("a question without a gold answer: rewards of %s alone", async (name, status) => {
  writeFileSync(at("open.jsonl"), JSON.stringify({ question: "Why?", answer: " " }));
  const train = `data.train=[{file: ${at("open.jsonl")}, format: generic}]`;
  expect(await check("--set", train, "--set", `rewards=[{name: ${name}}]`)).toBe(status);
  expect(out.text.includes("! no gold answer: 1")).toBe(status === 1);
});

test("a file for --json that cannot be written does not cost the report", async () => {
  expect(await check("--limit", "1", "--json", at("no-such-folder/report.json"))).toBe(1);
  expect(out.text).toContain("nothing here would stop a run");
  expect(err.text).toContain("no-such-folder");
});

test("--limit looks at the first records only", async () => {
  expect(await check("--limit", "1")).toBe(0);
  expect(out.text).toContain("nothing here would stop a run");
});

test.each([
  [["--limit", "0"], "--limit must be a whole number above 0"],
  [["--set", "data.train=[]"], "there is nothing to check"],
])("%j is refused", async (flags, message) => {
  expect(await check(...flags)).toBe(1);
  expect(err.text).toContain(message);
});
