/** An evaluation by one process and by several, as the command runs them: the same results, also when one was killed on the way. */

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import { dumpConfig } from "../../src/config/load.ts";
import type { EvalRecord } from "../../src/eval/answers.ts";
import { EXPERIMENT } from "../../src/experiment/run.ts";
import { capture } from "../cli/capture.ts";
import { childPids, isAlive } from "../distributed/run-job.ts";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

let world: TinyWorld;
let configFile: string;
beforeAll(async () => {
  world = await makeTinyWorld();
  configFile = path.join(world.folder, "eval.yaml");
  writeFileSync(configFile, dumpConfig(tinyConfig(world, "eval")));
});
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(world.folder, { recursive: true }));

const folderOf = (name: string) => mkdtempSync(path.join(world.folder, `${name}-`));
const evaluate = (folder: string, ...more: string[]) =>
  main(["eval", "--config", configFile, "--run-dir", folder, ...more]);
const text = (folder: string, name: string) => readFileSync(path.join(folder, name), "utf8");

test("three processes, one whose answers were cut off, find what one process finds", async () => {
  const out = capture(process.stdout);
  capture(process.stderr);
  const alone = folderOf("alone");
  expect(await evaluate(alone)).toBe(0);
  const table = out.text;
  expect(table).toContain("easy");

  const shared = folderOf("shared");
  writeFileSync(path.join(shared, "config.yaml"), "a training run's\n");
  expect(await evaluate(shared, "--shard", "2/3")).toBe(0);
  // As a kill leaves it: three whole lines, one torn; what is in a line is not asked again.
  const file = path.join(shared, "answers-easy.shard-2-of-3.jsonl");
  const lines = readFileSync(file, "utf8").split("\n");
  const first = JSON.parse(lines[0] as string) as EvalRecord;
  writeFileSync(file, `${JSON.stringify({ ...first, response: "kept" })}\n${lines.slice(1, 3).join("\n")}\n{"samp`);
  out.text = "";
  expect(await evaluate(shared, "--processes", "3")).toBe(0);
  expect(out.text.split("\n\nwritten")[0]).toBe(table.split("\n\nwritten")[0]);
  expect(text(shared, "results.json")).toBe(text(alone, "results.json"));
  expect(text(shared, "answers-easy.jsonl").replace('"kept"', JSON.stringify(first.response))).toBe(
    text(alone, "answers-easy.jsonl"),
  );
  const files = ["answers-easy.jsonl", "config.yaml", "evaluation.json", "evaluation.yaml", "results.json"];
  expect(readdirSync(shared).sort()).toEqual(files);
  expect(text(shared, "config.yaml")).toBe("a training run's\n");
  const settings = JSON.parse(text(shared, "evaluation.json"));
  expect(settings.decides).toEqual(JSON.parse(text(alone, "evaluation.json")).decides);
  expect(settings.ran).toMatchObject({ device: "cpu", processes: 3 });
});

test("ranks that a scheduler has started ask a share each; rank 0 adds up what one process finds", async () => {
  const out = capture(process.stdout);
  capture(process.stderr);
  const alone = folderOf("alone-too");
  expect(await evaluate(alone)).toBe(0);
  const folder = folderOf("ranks");
  const cli = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const results = await spawnRanks(2, cli, ["eval", "--config", configFile, "--run-dir", folder, "--overwrite"]);
  expect(results.map(({ status, stderr }) => ({ status, stderr }))).toEqual(Array(2).fill({ status: 0, stderr: "" }));
  expect(results[0]?.stdout.split("\n\nwritten")[0]).toBe(out.text.split("\n\nwritten")[0]);
  expect(results[1]?.stdout).toBe("");
  expect(text(folder, "results.json")).toBe(text(alone, "results.json"));
  expect(text(folder, "answers-easy.jsonl")).toBe(text(alone, "answers-easy.jsonl"));
});

test("several processes of a run that an experiment has started", async () => {
  const folder = folderOf("of-experiment");
  const cli = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const args = ["--import", "tsx", cli, "eval", "--config", configFile, "--run-dir", folder, "--processes", "2"];
  const env = { ...process.env, [EXPERIMENT]: String(process.pid) };
  const child = spawn(process.execPath, args, { env, stdio: ["ignore", "ignore", "pipe"] });
  let stderr = "";
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  const status = await new Promise((resolve) => child.once("close", resolve));
  expect({ status, error: /error \[.*/.exec(stderr)?.[0] }).toEqual({ status: 0, error: undefined });
  expect(existsSync(path.join(folder, "results.json"))).toBe(true);
});

test("killed in the middle and run again, it asks only what is missing", async () => {
  capture(process.stdout);
  capture(process.stderr);
  const knobs = ["--set", "eval.maxNewTokens=64", "--set", "eval.batchSize=1"];
  const alone = folderOf("undisturbed");
  expect(await evaluate(alone, ...knobs)).toBe(0);

  const folder = folderOf("killed");
  const shards = [1, 2].map((k) => path.join(folder, `answers-easy.shard-${k}-of-2.jsonl`));
  const lines = (file: string) => (existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : []);
  const cli = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const flags = ["eval", "--config", configFile, "--run-dir", folder, ...knobs, "--processes", "2"];
  const child = spawn(process.execPath, ["--import", "tsx", cli, ...flags], { stdio: "ignore" });
  while (child.exitCode === null && lines(shards[0] as string).length < 3) await sleep(5);
  const processes = childPids(child);
  expect(processes.length).toBeGreaterThanOrEqual(2);
  child.kill("SIGKILL");
  while (processes.some(isAlive)) await sleep(20); // they notice, and end
  const answered = shards.map((file) => lines(file).length);
  expect(answered[0]).toBeGreaterThanOrEqual(3);
  expect((answered[0] as number) + (answered[1] as number)).toBeLessThan(24);

  const [first, ...rest] = lines(shards[0] as string);
  const kept = JSON.parse(first as string) as EvalRecord;
  writeFileSync(shards[0] as string, [JSON.stringify({ ...kept, response: "kept" }), ...rest, ""].join("\n"));
  expect(await evaluate(folder, ...knobs, "--processes", "2")).toBe(0);
  expect(text(folder, "results.json")).toBe(text(alone, "results.json"));
  const answers = text(folder, "answers-easy.jsonl");
  expect(answers).toContain('"kept"');
  expect(answers.replace('"kept"', JSON.stringify(kept.response))).toBe(text(alone, "answers-easy.jsonl"));
});

test("a process that fails stops the evaluation with its error", async () => {
  const errors = capture(process.stderr);
  const broken = path.join(world.folder, "broken.jsonl");
  const records = readFileSync(world.questions, "utf8").trim().split("\n");
  records[4] = (records[4] as string).replace(/"image":"\w+\.png"/, '"image":"nothing.png"');
  writeFileSync(broken, `${records.join("\n")}\n`);
  const folder = folderOf("broken");
  expect(await evaluate(folder, "--processes", "2", "--set", `data.eval.easy.file=${broken}`)).toBe(1);
  expect(errors.text).toMatch(/error \[PROCESS\] process 1\/2 of the evaluation ended with status 1/);
  expect(errors.text).toMatch(/nothing\.png/);
});

test("other settings in the folder are refused, with what changed; so are contradicting flags", async () => {
  const errors = capture(process.stderr);
  capture(process.stdout);
  const folder = folderOf("claimed");
  expect(await evaluate(folder, "--limit", "2")).toBe(0);
  expect(await evaluate(folder, "--set", "eval.maxNewTokens=9")).toBe(1);
  expect(errors.text).toContain("holds the answers of another model or other settings");
  expect(errors.text).toContain("eval.maxNewTokens: 8 -> 9");
  expect(existsSync(path.join(folder, "results.json"))).toBe(true);
  const half = ["--limit", "2", "--shard", "1/2"];
  expect(await evaluate(folder, "--set", "eval.maxNewTokens=9", ...half, "--overwrite")).toBe(0);
  expect(existsSync(path.join(folder, "results.json"))).toBe(false); // they were the other evaluation's
  expect(await evaluate(folder, "--set", "eval.maxNewTokens=9", "--limit", "2")).toBe(0);
  expect(await evaluate(folder, "--shard", "1/2", "--processes", "2")).toBe(1);
  expect(errors.text).toContain("exclude each other");
  expect(await evaluate(folder, "--shard", "3/2")).toBe(1);
  expect(await evaluate(folder, "--processes", "0")).toBe(1);
});
