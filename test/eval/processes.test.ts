import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { ConfigError, ProcessError } from "../../src/errors.ts";
import { placeShards, runShards, type ShardProgress } from "../../src/eval/processes.ts";
import { capture } from "../cli/capture.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-processes-"));
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(folder, { recursive: true }));

const SOURCE = pathToFileURL(fileURLToPath(new URL("../../src/eval/processes.ts", import.meta.url))).href;
let scripts = 0;

/** A process that runs `body`, with `report` to tell its progress. */
function shard(k: number, of: number, body: string) {
  const file = path.join(folder, `script-${scripts++}.mts`);
  const head = `import { endReports, progressReporter } from ${JSON.stringify(SOURCE)};\nconst report = progressReporter();\n`;
  writeFileSync(file, `${head}${body}\n`);
  return { program: process.execPath, args: ["--import", "tsx", file], shard: { k, of } };
}

test("progress of all processes is added up, level by level", async () => {
  const seen: ShardProgress[] = [];
  const body = (total: number) => `
    for (let done = 1; done <= ${total}; done++) report({ level: "L1", done, total: ${total} });
    report({ level: "L2", done: 1, total: 1 });
    endReports();`;
  await runShards([shard(1, 2, body(3)), shard(2, 2, body(2))], (progress) => void seen.push(progress));
  expect(seen.filter(({ level }) => level === "L1").at(-1)).toEqual({ level: "L1", done: 5, total: 5 });
  expect(seen.filter(({ level }) => level === "L2").at(-1)).toEqual({ level: "L2", done: 2, total: 2 });
});

test("the first failure ends the others, and tells why", async () => {
  const errors = capture(process.stderr);
  const start = performance.now();
  const failure = await runShards([
    shard(1, 2, "setInterval(() => {}, 1000);"),
    shard(2, 2, 'console.error("a warning"); console.error("error [DATA] q7: no such file"); process.exit(1);'),
  ]).catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(ProcessError);
  expect((failure as Error).message).toBe(
    "process 2/2 of the evaluation ended with status 1; the others were stopped\nerror [DATA] q7: no such file",
  );
  expect(errors.text).toContain("[2/2] a warning");
  expect(errors.text).not.toContain("error [DATA]"); // whoever catches the error prints it
  expect(performance.now() - start).toBeLessThan(20_000);
});

test.each([
  ["a signal", 'process.kill(process.pid, "SIGKILL");', "was ended by SIGKILL"],
  ["an exception", 'throw new Error("broken");', "ended with status 1"],
])("%s is a failure", async (_what, body, how) => {
  capture(process.stderr);
  await expect(runShards([shard(1, 1, body)])).rejects.toThrow(`process 1/1 of the evaluation ${how}`);
});

test("a program that does not exist is a failure", async () => {
  const missing = { program: path.join(folder, "nothing"), args: [], shard: { k: 1, of: 1 } };
  await expect(runShards([missing])).rejects.toThrow(/could not be started: .*ENOENT/);
});

test("processes end when the one that started them is gone", async () => {
  const pidFile = path.join(folder, "pid");
  const waiting = shard(
    1,
    1,
    `(await import("node:fs")).writeFileSync(${JSON.stringify(pidFile)}, String(process.pid)); setInterval(() => {}, 1000);`,
  );
  const parent = path.join(folder, "parent.mts");
  writeFileSync(
    parent,
    `import { runShards } from ${JSON.stringify(SOURCE)};\nawait runShards([${JSON.stringify(waiting)}]);\n`,
  );
  const child = spawn(process.execPath, ["--import", "tsx", parent], { stdio: "ignore" });
  const { existsSync, readFileSync } = await import("node:fs");
  for (let i = 0; i < 200 && !(existsSync(pidFile) && readFileSync(pidFile, "utf8") !== ""); i++) await sleep(50);
  const pid = Number(readFileSync(pidFile, "utf8"));
  child.kill("SIGKILL");
  let alive = true;
  for (let i = 0; i < 100 && alive; i++) {
    await sleep(50);
    try {
      process.kill(pid, 0);
    } catch {
      alive = false;
    }
  }
  expect(alive).toBe(false);
});

test("each process gets a GPU, or a share of the CPU's threads", () => {
  expect(placeShards({ device: "cuda", threads: 0 }, 2, 8)).toEqual([
    { device: "cuda:0", threads: 0 },
    { device: "cuda:1", threads: 0 },
  ]);
  expect(placeShards({ device: "cpu", threads: 8 }, 3, 0)).toEqual(new Array(3).fill({ device: "cpu", threads: 2 }));
  expect(placeShards({ device: "cpu", threads: 1 }, 4, 0)[3]).toEqual({ device: "cpu", threads: 1 });
  expect(() => placeShards({ device: "cuda", threads: 0 }, 3, 2)).toThrow(ConfigError);
  expect(() => placeShards({ device: "cuda", threads: 0 }, 3, 2)).toThrow(/2 GPUs are visible/);
  expect(() => placeShards({ device: "cuda:1", threads: 0 }, 2, 8)).toThrow(/set device to cuda/);
});
