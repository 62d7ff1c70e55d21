// grove_lora_down: t [T, R] = scale x [T, K] a [R, K]^T, few columns R and long sums. What a row comes to does not depend on how many rows there are:
// a block takes sixteen of them, its warps take turns at K, 32 at a time, and their sums are added in the order of the warps. So a decode step and a
// training pass round alike, where a library would cut the sum by the number of rows.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "matrix_units.cuh"

namespace {

constexpr int kWarps = 16, kRows = 16, kColumns = 32, kTiles = kColumns / 8, kStep = 32;

// The eight values of a row from which a thread feeds two products: element k of the fragments is another column than that, the same one in x and a.
__device__ __forceinline__ uint4 load(const __nv_bfloat16* matrix, int row, int rows, int K, int column) {
  if (row >= rows) return make_uint4(0, 0, 0, 0);
  return __ldg(reinterpret_cast<const uint4*>(matrix + static_cast<int64_t>(row) * K + column));
}

__global__ void __launch_bounds__(kWarps * 32)
    down(const __nv_bfloat16* __restrict__ x, const __nv_bfloat16* __restrict__ a, __nv_bfloat16* t, int T, int R, int K, float scale) {
  __shared__ float sums[kWarps][kRows][kColumns];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
  const int firstRow = blockIdx.x * kRows, firstColumn = blockIdx.y * kColumns;
  float d[kTiles][4] = {};
#pragma unroll 2
  for (int k = warp * kStep; k < K; k += kWarps * kStep) {
    const int column = k + 8 * place;
    const uint4 upper = load(x, firstRow + group, T, K, column), lower = load(x, firstRow + group + 8, T, K, column);
    uint4 b[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; j++) b[j] = load(a, firstColumn + 8 * j + group, R, K, column);
    const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      multiply(d[j], first, b[j].x, b[j].y);
      multiply(d[j], second, b[j].z, b[j].w);
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][group + i / 2 * 8][8 * j + 2 * place + i % 2] = d[j][i];
  }
  __syncthreads();
  const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns;  // a thread for each of the block's sums
  if (firstRow + row >= T || firstColumn + column >= R) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; w++) sum += sums[w][row][column];
  t[static_cast<int64_t>(firstRow + row) * R + firstColumn + column] = __float2bfloat16_rn(scale * sum);
}
static_assert(kWarps * 32 == kRows * kColumns, "a thread for each sum");

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_lora_down(const void* x, const void* a, void* t, int rows, int columns, int K, float scale,
                                                                      void* stream) {
  if (K % kStep != 0) return static_cast<int>(cudaErrorInvalidValue);
  const dim3 grid((rows + kRows - 1) / kRows, (columns + kColumns - 1) / kColumns);
  const auto* from = static_cast<const __nv_bfloat16*>(x);
  down<<<grid, kWarps * 32, 0, static_cast<cudaStream_t>(stream)>>>(from, static_cast<const __nv_bfloat16*>(a), static_cast<__nv_bfloat16*>(t), rows,
                                                                   columns, K, scale);
  return static_cast<int>(cudaGetLastError());
}
