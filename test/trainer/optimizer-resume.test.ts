/** A run whose moments have few bits goes on from a checkpoint bit for bit, and does not go on with moments of another type. */

import { readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { trainSft } from "../../src/trainer/sft.ts";
import { makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
});
afterAll(() => rmSync(world.folder, { recursive: true }));

const config = (name: string, moments: string, steps: number) => {
  const trainer = { steps, saveEvery: 2, questionsPerStep: 2 };
  const made = tinyConfig(world, name, { trainer, optimizer: { learningRate: 1e-3, schedule: "constant", moments } });
  return { ...made, dtype: "bfloat16" as const };
};

test.each(["bfloat16", "int8"])("%s", async (moments) => {
  const straight = await trainSft(config(`${moments} straight`, moments, 4));
  await trainSft(config(`${moments} halves`, moments, 2));
  const halves = await trainSft(config(`${moments} halves`, moments, 4), { resume: true });
  for (const file of ["model/model.safetensors", "optimizer.safetensors"]) {
    const read = (runDir: string) => readFileSync(path.join(runDir, "checkpoint-4", file));
    expect(read(halves.runDir).equals(read(straight.runDir))).toBe(true);
  }
  await expect(trainSft(config(`${moments} halves`, "float32", 6), { resume: true })).rejects.toThrow(
    `holds moments of ${moments}, and optimizer.moments is float32`,
  );
});
