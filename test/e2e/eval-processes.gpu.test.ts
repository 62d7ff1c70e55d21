/** An evaluation on every visible GPU, which is what the command does by itself, finds what one GPU finds. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { dumpConfig } from "../../src/config/load.ts";
import { deviceCount } from "../../src/torch/cuda.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "../trainer/tiny-run.ts";

const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const text = (folder: string, name: string) => readFileSync(path.join(folder, name), "utf8");

/** Runs the command in a folder of its own, in float32: which questions share a batch then decides no token. */
function evaluate(name: string, ...flags: string[]): string {
  const file = path.join(world.folder, "eval.yaml");
  writeFileSync(file, dumpConfig(tinyConfig(world, "eval")));
  const folder = mkdtempSync(path.join(world.folder, `${name}-`));
  const args = ["eval", "--config", file, "--run-dir", folder, "--device", "cuda", ...flags];
  const { status, stderr } = spawnSync(process.execPath, ["--import", "tsx", MAIN, ...args], { encoding: "utf8" });
  expect(status, stderr).toBe(0);
  return folder;
}

test.skipIf(deviceCount() < 2)(
  "every visible GPU: the answers and results of one",
  () => {
    const one = evaluate("one", "--processes", "1");
    const all = evaluate("all");
    expect(JSON.parse(text(one, "evaluation.json")).ran.device).toBe("cuda");
    expect(JSON.parse(text(all, "evaluation.json")).ran).toMatchObject({ device: "cuda", processes: deviceCount() });
    expect(text(all, "answers-easy.jsonl").trim().split("\n")).toHaveLength(24);
    expect(text(all, "answers-easy.jsonl")).toBe(text(one, "answers-easy.jsonl"));
    expect(text(all, "results.json")).toBe(text(one, "results.json"));
  },
  120_000,
);
