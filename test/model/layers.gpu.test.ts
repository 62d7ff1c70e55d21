import { gpuTest } from "../setup/gpu.ts";
import { checkLayers } from "./layers-check.ts";

gpuTest.each([
  ["float32", 1e-5],
  ["bfloat16", 1e-2],
] as const)("fused layer parts equal the plain operators on CUDA in %s", (dtype, tolerance) =>
  checkLayers("cuda", dtype, tolerance),
);
