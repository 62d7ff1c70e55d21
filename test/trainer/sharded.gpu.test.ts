import { test } from "vitest";
import { hasGpusFor } from "../torch/gpus.ts";
import { expectSharded } from "./sharded-check.ts";

for (const world of [2, 8]) {
  test.skipIf(!hasGpusFor(world)).each([false, true])(
    `${world} GPUs, tied head %s: a sharded reference says what the resident one says; gradients are those of one GPU`,
    async (tied) => {
      await expectSharded(world, "cuda", tied, 0.02); // bfloat16, rounded at each pass
    },
  );
}
