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

test("GPUs that are cut into MIG slices count as the slice that a process sees", () => {
  const listing = "0, GPU-aaaa1111, 40960, Enabled\n1, GPU-bbbb2222, 81920, Disabled\n";
  const slices = [
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111)",
    "  MIG 3g.20gb     Device  0: (UUID: MIG-1111-2222)",
    "  MIG 1g.5gb+me   Device  1: (UUID: MIG-3333-4444)",
    "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb2222)",
  ].join("\n");
  const gb = (visible?: string) => chooseGpus(listing, visible, slices).map(({ bytes }) => bytes / 1e9);
  expect(gb()).toEqual([20]);
  expect(gb("0")).toEqual([20]);
  expect(gb("MIG-3333-4444")).toEqual([5]);
  expect(gb("1")).toEqual([(81920 * 2 ** 20) / 1e9]);
  expect(gb("MIG-9999")).toEqual([]);
  expect(chooseGpus(listing, "0", "").map(({ bytes }) => bytes / 2 ** 20)).toEqual([40960]); // a driver that lists none
});
