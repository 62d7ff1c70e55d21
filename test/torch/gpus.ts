/**
 * GPUs for tests of several ranks: one for each; or one for all, where NCCL is told to allow it (its own variable NCCL_MULTI_RANK_GPU_ENABLE=1, known to
 * NCCL 2.32 but not to 2.28).
 */

import { deviceCount } from "../../src/torch/cuda.ts";

/** Whether so many ranks find GPUs here. */
export function hasGpusFor(ranks: number): boolean {
  return deviceCount() >= ranks || (deviceCount() === 1 && process.env.NCCL_MULTI_RANK_GPU_ENABLE === "1");
}

/** The GPU of a rank on this machine. */
export const gpuOfRank = (rank: number): number => rank % deviceCount();
