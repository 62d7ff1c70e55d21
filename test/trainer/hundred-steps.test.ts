import { rmSync } from "node:fs";
import { afterAll, beforeAll, test } from "vitest";
import { compareHundredSteps } from "./hundred-steps.ts";
import { makeTinyWorld, type TinyWorld } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

test("100 steps of two ranks are those of one within float32's rounding", async () => {
  await compareHundredSteps(world, { dtype: "float32", devices: ["cpu"] });
}, 600_000);
