/**
 * GPUs for tests of two ranks: one for each; or one for both, where NCCL is told to allow it (its own variable NCCL_MULTI_RANK_GPU_ENABLE=1, known to
 * NCCL 2.32 but not to 2.28).
 */

import { deviceCount } from "../../src/torch/cuda.ts";

export const HAS_TWO_RANKS =
  deviceCount() > 1 || (deviceCount() === 1 && process.env.NCCL_MULTI_RANK_GPU_ENABLE === "1");

/** The GPU of a rank on this machine. */
export const gpuOfRank = (rank: number): number => rank % deviceCount();
