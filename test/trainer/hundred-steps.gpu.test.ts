import { rmSync } from "node:fs";
import { afterAll, beforeAll, test } from "vitest";
import { gpuOfRank, hasGpusFor } from "../torch/gpus.ts";
import { compareHundredSteps } from "./hundred-steps.ts";
import { makeTinyWorld, type TinyWorld } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

test.skipIf(!hasGpusFor(2))(
  "100 steps on two GPUs are those of one within bfloat16's rounding",
  async () => {
    await compareHundredSteps(world, { dtype: "bfloat16", devices: ["cuda:0", `cuda:${gpuOfRank(1)}`] });
  },
  120_000,
);
