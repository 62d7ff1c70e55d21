/** Sweeps with a trainer that only pretends. */

import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import YAML from "yaml";
import type { Slot } from "../../src/experiment/slots.ts";

export const FAKE = {
  program: process.execPath,
  args: [fileURLToPath(new URL("fake-trainer.mjs", import.meta.url))],
};

export const slots = (count: number): Slot[] => Array.from({ length: count }, () => ({ env: {}, set: [] }));

export interface Place {
  folder: string;
  /** A file of an experiment over a config that is in order; `changes` replace its keys. */
  write(name: string, changes?: object): string;
  /** Run folders in the order in which runs were started, below the experiment's. */
  starts(): string[];
}

export function makePlace(): Place {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-experiment-"));
  const base = path.join(folder, "base.yaml");
  writeFileSync(
    base,
    YAML.stringify({
      model: { path: "none" },
      data: { train: [{ file: "none", format: "generic" }] },
      trainer: { steps: 9 },
    }),
  );
  process.env.FAKE_STARTS = path.join(folder, "starts");
  return {
    folder,
    write(name, changes = {}) {
      const file = path.join(folder, `${name}.yaml`);
      writeFileSync(
        file,
        YAML.stringify({
          config: [base],
          runDir: path.join(folder, name),
          objective: { metric: "reward/accuracy", window: 1 },
          space: { "optimizer.learningRate": { min: 1e-6, max: 0.1, scale: "log" }, "trainer.klCoef": [0, 0.04, 0.1] },
          search: "random",
          trials: 5,
          ...changes,
        }),
      );
      return file;
    },
    starts() {
      const file = process.env.FAKE_STARTS as string;
      if (!existsSync(file)) return [];
      const lines = readFileSync(file, "utf8").trim().split("\n");
      return lines.map((line) => path.relative(folder, line));
    },
  };
}
