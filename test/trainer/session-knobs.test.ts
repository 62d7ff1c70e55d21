import { expect, test } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { totalSteps } from "../../src/trainer/schedule.ts";
import { changedKnobs, sharedKnobs } from "../../src/trainer/session-knobs.ts";

const config = (more: object = {}) => configSchema.parse({ model: { path: "m" }, ...more });

test("knobs that make another run are named, those that do not are left out", () => {
  const before = config({ data: { train: [{ file: "a", format: "generic" }] }, optimizer: { learningRate: 1e-3 } });
  const after = config({
    device: "cuda",
    threads: 4,
    data: { train: [{ file: "b", format: "generic" }], workers: 7, prefetch: 0 },
    trainer: { saveEvery: 3, evalEvery: 9, steps: 12 },
    optimizer: { learningRate: 2e-3, offload: "cpu" },
  });
  expect(changedKnobs(before, after)).toEqual([
    'data.train.0.file: "a" -> "b"',
    "optimizer.learningRate: 0.001 -> 0.002",
    "trainer.steps: unset -> 12",
  ]);
  expect(changedKnobs(after, after)).toEqual([]);
  const { loss, ratio, klIn, ...trainer } = after.trainer; // as a version saved it that had no such knobs
  const { shardGradients, ...distributed } = after.distributed;
  expect(changedKnobs({ ...after, trainer, distributed } as typeof after, after)).toEqual([]);
});

test("ranks must agree in all that leads to a collective, and in nothing that is a machine's own", () => {
  const knobs = (more: object) => sharedKnobs(config(more));
  const own = { device: "cuda", threads: 4, data: { workers: 7, cacheDir: "x" }, distributed: { timeoutS: 9 } };
  expect(knobs(own)).toEqual(knobs({}));
  for (const more of [
    { trainer: { saveEvery: 3 } },
    { trainer: { evalEvery: 9 } },
    { trainer: { evalLimit: 5 } },
    { trainer: { saveFinal: false } },
    { eval: { batchSize: 3 } },
    { distributed: { shardGradients: true } },
    { distributed: { shardReference: true } },
  ])
    expect(knobs(more)).not.toEqual(knobs({}));
});

test("steps: as many as the config says, or as its epochs take", () => {
  expect(totalSteps(config({ trainer: { steps: 7 } }), 1000)).toBe(7);
  expect(totalSteps(config({ trainer: { epochs: 1, questionsPerStep: 8 } }), 100)).toBe(13);
  expect(totalSteps(config({ trainer: { epochs: 2.5, questionsPerStep: 10 } }), 40)).toBe(10);
  expect(totalSteps(config({ trainer: { questionsPerStep: 64 } }), 3)).toBe(1);
});
