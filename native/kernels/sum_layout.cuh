// How sums of gradients lie in global memory between group_attention_backward.cu and gather_sums.cu: float32 [heads][2 halves of the columns][rows][64].
// Of each 16 columns, 2 c, 2 c + 1, 8 + 2 c and 8 + 2 c + 1 are next to each other, c = 0 to 3: what a thread has after a product. In odd rows the first and
// the second 16 columns are swapped, the third and the fourth too, for the sake of the banks of shared memory.
#pragma once

#include "bfloat16_vector.cuh"

namespace {

constexpr int kHead = 128;

// Sixteen columns from `column` on, in values from the first of the head's sums.
__device__ __forceinline__ int64_t placeOf(int rows, int row, int column) {
  return (static_cast<int64_t>(column / 64) * rows + row) * 64 + (column % 64 ^ (row & 1) * 16);
}

// They, times scale.
__device__ __forceinline__ void readSums(const float* from, float scale, float (&first)[8], float (&second)[8]) {
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const float4 x = reinterpret_cast<const float4*>(from)[c];
    first[2 * c] = x.x * scale, first[2 * c + 1] = x.y * scale, second[2 * c] = x.z * scale, second[2 * c + 1] = x.w * scale;
  }
}

}  // namespace
