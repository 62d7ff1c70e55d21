import { expect, test } from "vitest";
import { chooseGpus } from "../../src/cli/gpus.ts";

const LISTING = "0, GPU-aaaa1111, 40960\n1, GPU-bbbb2222, 81920\n2, GPU-cccc3333, 81920\n";
const mib = (visible?: string) => chooseGpus(LISTING, visible).map(({ bytes }) => bytes / 2 ** 20);

test("nvidia-smi's GPUs, those that CUDA_VISIBLE_DEVICES leaves", () => {
  expect(mib()).toEqual([40960, 81920, 81920]);
  expect(mib("2,0")).toEqual([81920, 40960]);
  expect(mib("GPU-bbbb, 0")).toEqual([81920, 40960]);
  expect(mib("0,7,1")).toEqual([40960]); // as CUDA has it: what stands behind a wrong name does not count
  expect(mib("")).toEqual([]);
  expect(mib("-1")).toEqual([]);
  expect(chooseGpus("", undefined)).toEqual([]);
  expect(chooseGpus("No devices were found\n", undefined)).toEqual([]);
});
