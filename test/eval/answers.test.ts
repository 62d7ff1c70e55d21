import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";
import { CheckpointError, ConfigError } from "../../src/errors.ts";
import { AnswerFiles, type EvalRecord, parseShard, readAnswers, shardOf } from "../../src/eval/answers.ts";

test.each(["", "1", "0/3", "4/3", "1/0", "-1/3", "1.5/3", "1/3/5", "a/b", "1/99999"])("%j is no share", (text) => {
  expect(() => parseShard(text)).toThrow(ConfigError);
});

test.each([1, 2, 3, 7, 30])("%i shares hold every question once, none much more than another", (of) => {
  const questions = Array.from({ length: 23 }, (_, i) => i);
  const shares = Array.from({ length: of }, (_, i) => shardOf(questions, parseShard(`${i + 1}/${of}`)));
  expect(shares.flat().sort((a, b) => a - b)).toEqual(questions);
  const sizes = shares.map((share) => share.length);
  expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
});

test("a share is the same questions on every machine: every N-th from the k-th on", () => {
  expect(shardOf([10, 11, 12, 13, 14, 15, 16], { k: 1, of: 3 })).toEqual([10, 13, 16]);
  expect(shardOf([10, 11, 12, 13, 14, 15, 16], { k: 3, of: 3 })).toEqual([12, 15]);
});

test("no share is all", () => {
  expect(shardOf([3, 1, 2], undefined)).toEqual([3, 1, 2]);
});

test("a line for which there is no room is an error, and cut off by whoever goes on", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-answers-"));
  const write = (size: number) =>
    `import { AnswerFiles } from "./src/eval/answers.ts";
    new AnswerFiles(${JSON.stringify(folder)}, "L1").open().write({ sample_id: "a" + ${size}, response: "x".repeat(${size}) });`;
  // A file may grow to 4 kB: the second line is written in part.
  const run = (script: string) =>
    spawnSync(
      "bash",
      ["-c", 'ulimit -f 4; exec "$0" --import tsx --input-type=module -e "$1"', process.execPath, script],
      {
        encoding: "utf8",
        env: { ...process.env, TSX_DISABLE_CACHE: "1" },
      },
    );
  expect(run(write(3000)).status).toBe(0);
  const { status, stderr } = run(write(3000));
  expect(stderr).toContain("EFBIG");
  expect(status).not.toBe(0);
  const files = new AnswerFiles(folder, "L1");
  expect(readFileSync(files.file, "utf8").endsWith("\n")).toBe(false);
  expect([...files.read().keys()]).toEqual(["a3000"]);
  using out = files.open();
  out.write({ sample_id: "b" } as EvalRecord);
  expect(readAnswers(files.file).map(({ sample_id }) => sample_id)).toEqual(["a3000", "b"]);
  rmSync(folder, { recursive: true });
});

test.each([
  ["null"],
  ["{}"],
  ['{"samp{"sample_id":"b"}'],
])("a line %j within a file is refused by its number", (line) => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-answers-"));
  const file = path.join(folder, "answers-L1.jsonl");
  writeFileSync(file, `{"sample_id":"a"}\n${line}\n{"sample_id":"c"}\n`);
  expect(() => readAnswers(file)).toThrow(CheckpointError);
  expect(() => readAnswers(file)).toThrow(/line 2 is .*; remove it, and its question is asked again/);
  rmSync(folder, { recursive: true });
});
