import { expect, test } from "vitest";
import { slotsFor, visibleGpus } from "../../src/experiment/slots.ts";

test("GPUs are shared out, one or several a run, and taken in turns where more runs are asked for", () => {
  const cuda = { device: "cuda", threads: 4 };
  const visible = (parallel: number | undefined, gpusPerRun: number, gpus: string[]) =>
    slotsFor(cuda, { parallel, gpusPerRun }, gpus, 16).map(({ env }) => env.CUDA_VISIBLE_DEVICES);
  expect(visible(undefined, 1, ["0", "1", "2"])).toEqual(["0", "1", "2"]);
  expect(visible(undefined, 2, ["4", "5", "6", "7"])).toEqual(["4,5", "6,7"]);
  expect(visible(3, 1, ["0"])).toEqual(["0", "0", "0"]);
  expect(visible(2, 1, ["GPU-a", "GPU-b", "GPU-c"])).toEqual(["GPU-a", "GPU-b"]);
  expect(() => visible(undefined, 2, ["0"])).toThrow("gpusPerRun is 2, but 1 GPUs are visible");
});

test("the CPU's threads are shared out, unless the config sets them", () => {
  const knobs = (threads: number, parallel?: number) =>
    slotsFor({ device: "cpu", threads }, { parallel, gpusPerRun: 1 }, [], 9).map(({ set }) => set);
  expect(knobs(0)).toEqual([[]]);
  expect(knobs(0, 2)).toEqual([["threads=4"], ["threads=4"]]);
  expect(knobs(3, 2)).toEqual([[], []]);
});

test("which GPUs are visible is what the variable says", async () => {
  expect(await visibleGpus({ device: "cuda" }, { CUDA_VISIBLE_DEVICES: "3,1" })).toEqual(["3", "1"]);
  expect(await visibleGpus({ device: "cuda" }, { CUDA_VISIBLE_DEVICES: "" })).toEqual([]);
  expect(await visibleGpus({ device: "cpu" }, { CUDA_VISIBLE_DEVICES: "3" })).toEqual([]);
});
