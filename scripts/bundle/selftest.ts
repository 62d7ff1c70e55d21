/**
 * `./run.sh selftest [part of a name ...]`: runs the bundle's test files, by default those that need a GPU (*.gpu.test.ts), each in a
 * process of its own.
 */

import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { startTests } from "./vitest-shim.ts";

const root = fileURLToPath(new URL("../..", import.meta.url)); // of the bundle: this becomes node_modules/vitest/selftest.js
const TIMEOUT_MS = 300_000;
const SETUP_FILES = ["test/setup/no-leaks.ts", "test/setup/gpu.ts"];

interface Task {
  name: string;
  type: string;
  tasks?: Task[];
  result?: { state: string; duration?: number; errors?: { message: string; stack?: string }[] };
}

const [mode, ...rest] = process.argv.slice(2);
if (mode === "--file") await runFile(rest[0] as string);
else runAll(process.argv.slice(2));

function runAll(names: string[]): void {
  const all = (readdirSync(path.join(root, "test"), { recursive: true }) as string[]).filter((file) =>
    file.endsWith(".test.ts"),
  );
  const wanted =
    names.length === 0
      ? (file: string) => file.endsWith(".gpu.test.ts")
      : (file: string) => names.some((name) => file.includes(name));
  const files = all.filter(wanted).sort();
  const failed = files.filter((file) => {
    process.stdout.write(`test/${file}\n`);
    const args = [...process.execArgv, fileURLToPath(import.meta.url), "--file", path.join(root, "test", file)];
    return spawnSync(process.execPath, args, { stdio: "inherit", cwd: root }).status !== 0;
  });
  process.stdout.write(`${files.length - failed.length} files passed, ${failed.length} failed\n`);
  process.exitCode = failed.length > 0 || files.length === 0 ? 1 : 0;
}

async function runFile(file: string): Promise<void> {
  const isGpu = file.endsWith(".gpu.test.ts");
  const setupFiles = SETUP_FILES.slice(0, isGpu ? 2 : 1).map((name) => path.join(root, name));
  const config = {
    root,
    setupFiles,
    name: "selftest",
    passWithNoTests: true,
    allowOnly: true,
    sequence: { seed: 0, hooks: "stack", setupFiles: "list" },
    maxConcurrency: 1,
    testTimeout: TIMEOUT_MS,
    hookTimeout: TIMEOUT_MS,
    retry: 0,
    tags: [],
    strictTags: false,
  };
  const runner = { config, importFile: (name: string) => import(pathToFileURL(name).href) };
  const tasks = (await startTests(
    [{ filepath: file, testLocations: undefined }] as never,
    runner as never,
  )) as unknown as Task[];
  const failures = tasks.map((task) => report(task, 0)).reduce((sum, count) => sum + count, 0);
  process.exit(failures > 0 ? 1 : 0);
}

/** Prints a task and what is below it; returns how many failed. */
function report(task: Task, depth: number): number {
  const { state = "skipped", duration = 0, errors = [] } = task.result ?? {};
  if (depth > 0)
    process.stdout.write(
      `${"  ".repeat(depth)}${state === "pass" ? "ok  " : state} ${task.name} (${Math.round(duration)} ms)\n`,
    );
  for (const error of errors) process.stdout.write(`${error.stack ?? error.message}\n`);
  const below = (task.tasks ?? []).map((child) => report(child, depth + 1)).reduce((sum, count) => sum + count, 0);
  return below + (state === "fail" && (task.type === "test" || below === 0) ? 1 : 0);
}
