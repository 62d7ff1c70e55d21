import { test } from "vitest";
import { HAS_TWO_RANKS } from "../torch/gpus.ts";
import { expectSharded } from "./sharded-check.ts";

test.skipIf(!HAS_TWO_RANKS).each([false, true])(
  "two GPUs, tied head %s: a sharded reference says what the resident one says; gradients are those of one GPU",
  async (tied) => {
    await expectSharded(2, "cuda", tied, 0.02); // bfloat16, rounded at each pass
  },
);
