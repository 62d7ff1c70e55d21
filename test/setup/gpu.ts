/** Says once a file why GPU tests are skipped. The tests themselves use `gpuTest` below. */
import { test } from "vitest";
import { cudaAvailable, versions } from "../../src/torch/cuda.ts";

const reason = versions().cudaBuild ? "no CUDA device is visible" : "libtorch was built without CUDA";
if (!cudaAvailable()) process.stderr.write(`GPU tests skipped: ${reason}\n`);

/** `test` where there is a CUDA device, else a skipped test. */
export const gpuTest: typeof test = cudaAvailable() ? test : (test.skip as typeof test);
