// grove_lora_down: t [T, R] = scale x [T, K] a [R, K]^T, few columns R and long sums. What a row comes to does not depend on how many rows there are:
// K is cut into 64 chunks, each is summed by itself, eight sums after each other, and the eight sums of eight. So a decode step and a training pass
// round alike, where a library would cut the sum by the number of rows.
//
// Of few rows this is all latency, and a decode step waits for it: each chunk has a warp, eight blocks, a cluster, share a sum, what they read first of
// a is on its way before the kernel that makes x has ended, and a block is small enough to begin beside those of the products before and after. With
// many rows a block takes all of K, each warp eight chunks after each other, and more columns.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "hopper.cuh"
#include "launch.cuh"
#include "matrix_units.cuh"

namespace {

constexpr int kWarps = 8, kRows = 16, kStep = 32, kCluster = 8, kChunks = kWarps * kCluster;
constexpr int kFewRows = 256;

// The eight values of a row from which a thread feeds two products: element k of the fragments is another column than that, the same one in x and a.
__device__ __forceinline__ uint4 load(const __nv_bfloat16* matrix, int row, int rows, int K, int column, int end) {
  if (row >= rows || column >= end) return make_uint4(0, 0, 0, 0);
  return *reinterpret_cast<const uint4*>(matrix + static_cast<int64_t>(row) * K + column);
}

// BLOCKS share a sum, kCluster or 1. A warp asks for AHEAD steps at once.
template <int BLOCKS, int COLUMNS, int AHEAD>
__global__ void __launch_bounds__(kWarps * 32)
    down(const __nv_bfloat16* x, const __nv_bfloat16* a, __nv_bfloat16* t, int T, int R, int K, float scale) {
  constexpr int kTiles = COLUMNS / 8, kSums = kRows * COLUMNS, kShare = kSums / BLOCKS;  // sums that a block completes
  __shared__ float sums[kWarps][kSums];
  __shared__ float ofBlocks[BLOCKS][kShare];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4, block = blockIdx.x % BLOCKS;
  const int firstRow = blockIdx.x / BLOCKS * kRows, firstColumn = blockIdx.y * COLUMNS;
  letNextStart();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (BLOCKS > 1) clusterArrive();
#endif
  int chunk = (block * kWarps + warp) * (kCluster / BLOCKS);
  const int steps = K / kStep, lastChunk = chunk + kCluster / BLOCKS;
  const auto startOf = [&](int c) { return static_cast<int>(static_cast<int64_t>(steps) * c / kChunks); };
  const int end = startOf(lastChunk);
  int step = startOf(chunk), endOfChunk = startOf(chunk + 1);
  uint4 b[AHEAD][kTiles];
  const auto loadA = [&] {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
#pragma unroll
      for (int j = 0; j < kTiles; j++) b[i][j] = load(a, firstColumn + 8 * j + group, R, K, (step + i) * kStep + 8 * place, end * kStep);
    }
  };
  float d[kTiles][4] = {}, whole[kTiles][4] = {};  // of the chunk, of the chunks so far
  loadA();
  waitForPrevious();
  while (step < end) {
    uint4 upper[AHEAD], lower[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int column = (step + i) * kStep + 8 * place;
      upper[i] = load(x, firstRow + group, T, K, column, end * kStep);
      lower[i] = load(x, firstRow + group + 8, T, K, column, end * kStep);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (step + i >= end) break;
      const uint32_t first[4] = {upper[i].x, lower[i].x, upper[i].y, lower[i].y}, second[4] = {upper[i].z, lower[i].z, upper[i].w, lower[i].w};
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        multiply(d[j], first, b[i][j].x, b[i][j].y);
        multiply(d[j], second, b[i][j].z, b[i][j].w);
      }
      if constexpr (BLOCKS == 1) {
        if (step + i + 1 < endOfChunk) continue;
        while (step + i + 1 >= endOfChunk && chunk < lastChunk) endOfChunk = startOf(++chunk + 1);  // with few columns chunks may be empty
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
#pragma unroll
          for (int e = 0; e < 4; e++) whole[j][e] += d[j][e], d[j][e] = 0;
        }
      }
    }
    step += AHEAD;
    loadA();
  }
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
#pragma unroll
    for (int e = 0; e < 4; e++) sums[warp][(group + e / 2 * 8) * COLUMNS + 8 * j + 2 * place + e % 2] = BLOCKS > 1 ? d[j][e] : whole[j][e];
  }
  __syncthreads();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (BLOCKS > 1) clusterWait();  // all blocks have begun: their memory is there
#endif
  for (int i = threadIdx.x; i < kSums; i += kWarps * 32) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) sum += sums[w][i];
    float* to = &ofBlocks[block][i % kShare];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (BLOCKS > 1) {
      storeIn(addressIn(i / kShare, to), sum);
      continue;
    }
#endif
    *to = sum;
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (BLOCKS > 1) clusterArrive(), clusterWait();
#endif
  for (int i = threadIdx.x; i < kShare; i += kWarps * 32) {
    const int at = block * kShare + i, row = firstRow + at / COLUMNS, column = firstColumn + at % COLUMNS;
    float sum = 0;
#pragma unroll
    for (int from = 0; from < BLOCKS; from++) sum += ofBlocks[from][i];
    if (row < T && column < R) t[static_cast<int64_t>(row) * R + column] = __float2bfloat16_rn(scale * sum);
  }
}

template <int BLOCKS, int COLUMNS, int AHEAD>
int launch(const void* x, const void* a, void* t, int rows, int columns, int K, float scale, void* stream) {
  const dim3 grid((rows + kRows - 1) / kRows * BLOCKS, (columns + COLUMNS - 1) / COLUMNS);
  return static_cast<int>(launchChained<BLOCKS>(down<BLOCKS, COLUMNS, AHEAD>, grid, dim3(kWarps * 32), 0, static_cast<cudaStream_t>(stream),
                                                static_cast<const __nv_bfloat16*>(x), static_cast<const __nv_bfloat16*>(a),
                                                static_cast<__nv_bfloat16*>(t), rows, columns, K, scale));
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_lora_down(const void* x, const void* a, void* t, int rows, int columns, int K, float scale,
                                                                      void* stream) {
  if (K % kStep != 0) return static_cast<int>(cudaErrorInvalidValue);
  if (rows <= kFewRows && chains()) return launch<kCluster, 16, 5>(x, a, t, rows, columns, K, scale, stream);
  if (columns <= 16) return launch<1, 16, 4>(x, a, t, rows, columns, K, scale, stream);
  return launch<1, 32, 3>(x, a, t, rows, columns, K, scale, stream);
}
