import { test } from "vitest";
import { expectSharded } from "./sharded-check.ts";

test.each([
  [2, false],
  [3, true], // one rank has no pack
])("%i ranks, tied head %s: a sharded reference says what the resident one says; gradients are those of one rank", async (world, tied) => {
  await expectSharded(world, "cpu", tied, 1e-5);
});
