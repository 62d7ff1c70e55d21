/** `deterministic: true`: the same run twice, and once with a stop in the middle, to the last bit. Heads of 128 go through Hopper's attention otherwise. */

import { rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect } from "vitest";
import type { Config } from "../../src/config/schema.ts";
import { writeModelFolder } from "../../src/data/tiny-model-folder.ts";
import { setDeterministic } from "../../src/torch/cuda.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { readMetrics } from "../../src/trainer/run-folder.ts";
import { gpuTest } from "../setup/gpu.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

const STEPS = 8;
let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
  const spec = {
    hiddenSize: 256,
    intermediateSize: 128,
    layers: 2,
    heads: 2,
    kvHeads: 1,
    visionWidth: 160,
    visionLayers: 1,
    visionHeads: 2,
  };
  await writeModelFolder(path.join(world.folder, "wide"), {
    spec,
    corpus: ["Which colour? red green blue white think answer the picture is"],
  });
});
afterAll(() => {
  setDeterministic(false); // it holds for the process
  rmSync(world.folder, { recursive: true });
});

for (const dtype of ["float32", "bfloat16"] as const) {
  gpuTest(`${dtype}: twice the same run, resumed or not, gives the same bits`, async () => {
    const config = (name: string): Config => ({
      ...tinyConfig(world, `${dtype} ${name}`, {
        model: { path: path.join(world.folder, "wide"), init: "random" },
        trainer: { questionsPerStep: 3, steps: STEPS, saveEvery: STEPS / 2, iterations: 2, klCoef: 0.04 },
      }),
      device: "cuda",
      dtype,
      deterministic: true,
    });
    const lines = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl")).map(deterministic);
    const [first, second, stopped] = [config("first"), config("second"), config("stopped")];
    await trainGrpo(first);
    await trainGrpo(second);
    expect(lines(first)).toHaveLength(STEPS);
    expect(lines(second)).toEqual(lines(first));
    await trainGrpo(stopped);
    rmSync(path.join(stopped.runDir, `checkpoint-${STEPS}`), { recursive: true });
    await trainGrpo(stopped, { resume: true });
    expect(lines(stopped)).toEqual(lines(first));
  });
}
