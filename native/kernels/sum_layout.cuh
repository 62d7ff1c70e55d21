// How sums of gradients lie in global memory between group_attention_backward.cu and gather_sums.cu: float32 [heads][rows][128], and in each 16 columns
// 2 c, 2 c + 1, 8 + 2 c and 8 + 2 c + 1 next to each other, c = 0 to 3: what a thread has after a product.
#pragma once

#include "bfloat16_vector.cuh"

namespace {

constexpr int kHead = 128;

// Sixteen columns, times scale.
__device__ __forceinline__ void readSums(const float* from, float scale, float (&first)[8], float (&second)[8]) {
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const float4 x = reinterpret_cast<const float4*>(from)[c];
    first[2 * c] = x.x * scale, first[2 * c + 1] = x.y * scale, second[2 * c] = x.z * scale, second[2 * c + 1] = x.w * scale;
  }
}

}  // namespace
