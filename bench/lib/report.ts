/** What every benchmark's result says about where it was measured, and how numbers are summed up. */

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname } from "node:path";
import { deviceName, versions } from "../../src/torch/cuda.ts";
import type { Device } from "../../src/torch/dtype.ts";

/** Over repeats. */
export interface Spread {
  median: number;
  min: number;
  max: number;
}

/** @throws RangeError without a sample */
export function spread(samples: readonly number[]): Spread {
  if (samples.length === 0) throw new RangeError("a spread needs a sample: --repeats is 1 or more");
  const sorted = [...samples].sort((x, y) => x - y);
  const [low, high] = [Math.ceil(sorted.length / 2) - 1, Math.floor(sorted.length / 2)];
  return { median: (sorted[low]! + sorted[high]!) / 2, min: sorted[0]!, max: sorted.at(-1)! };
}

/** Machine and versions, for the head of a result file. */
export function environment(device: Device): {
  device: string;
  cores: number;
  torch: string;
  node: string;
  commit: string;
} {
  return {
    device: device === "cpu" ? (cpus()[0]?.model ?? "cpu") : deviceName(),
    cores: cpus().length,
    torch: versions().torch,
    node: process.version,
    commit: commit(),
  };
}

/** Writes a result as JSON; folders are made. */
export function writeResult(file: string, result: unknown): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`);
}

/** Of the clone, or of the bundle (its file COMMIT). */
export function commit(): string {
  const bundled = new URL("../../COMMIT", import.meta.url);
  if (existsSync(bundled)) return readFileSync(bundled, "utf8").trim();
  try {
    return execFileSync("git", ["rev-parse", "--short", "HEAD"], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
  } catch {
    return "unknown";
  }
}
