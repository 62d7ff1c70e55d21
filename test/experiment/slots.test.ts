import { expect, test } from "vitest";
import { plannedPlaces, slotsFor, visibleGpus } from "../../src/experiment/slots.ts";

test("GPUs are shared out, one or several a run, and taken in turns where more runs are asked for", () => {
  const cuda = { device: "cuda", threads: 4 };
  const visible = (parallel: number | undefined, gpusPerRun: number, gpus: string[]) =>
    slotsFor(cuda, { parallel, gpusPerRun }, gpus, 16).map(({ env }) => env.CUDA_VISIBLE_DEVICES);
  expect(visible(undefined, 1, ["0", "1", "2"])).toEqual(["0", "1", "2"]);
  expect(visible(undefined, 2, ["4", "5", "6", "7"])).toEqual(["4,5", "6,7"]);
  expect(visible(3, 1, ["0"])).toEqual(["0", "0", "0"]);
  expect(visible(2, 1, ["GPU-a", "GPU-b", "GPU-c"])).toEqual(["GPU-a", "GPU-b"]);
  expect(() => visible(undefined, 2, ["0"])).toThrow(
    "gpusPerRun is 2, but 1 GPUs are visible: start it where there are as many",
  );
});

test("a plan says what a run wants and what is here, and refuses nothing", () => {
  const plan = (parallel: number | undefined, gpusPerRun: number, gpus: number) =>
    plannedPlaces({ device: "cuda" }, { parallel, gpusPerRun }, gpus);
  expect(plan(undefined, 2, 5)).toEqual({
    atATime: "2 at a time",
    notes: ["GPUs: 2 for each run (gpusPerRun), 5 visible here"],
  });
  expect(plan(4, 1, 1).atATime).toBe("4 at a time");
  const refused = [
    "GPUs: 8 for each run (gpusPerRun), 0 visible here: without --dry-run it is refused on this machine",
  ];
  expect(plan(undefined, 8, 0)).toEqual({ atATime: "as many at a time as there are GPUs for", notes: refused });
  expect(plan(3, 8, 0)).toEqual({ atATime: "3 at a time", notes: refused });
  expect(plannedPlaces({ device: "cpu" }, { gpusPerRun: 8 }, 0)).toEqual({ atATime: "1 at a time", notes: [] });
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
  expect(await visibleGpus({ device: "cuda" }, { CUDA_VISIBLE_DEVICES: "-1" })).toEqual([]);
  expect(await visibleGpus({ device: "cuda" }, { CUDA_VISIBLE_DEVICES: "1, 0,-1,2" })).toEqual(["1", "0"]);
  expect(await visibleGpus({ device: "cpu" }, { CUDA_VISIBLE_DEVICES: "3" })).toEqual([]);
});
