// grove_column_sums: the gradient of a bias, the sum of all rows of x, in float32, rounded once; added to what is there or in its place.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

#include "column_parts.cuh"

namespace {

constexpr int kLanes = 32, kRowsAtOnce = 8;  // a block: 32 vectors of columns, eight rows side by side

// Block (i, s) adds up rows [s, s + 1) * slice of the vectors [i, i + 1) * kLanes.
__global__ void __launch_bounds__(kLanes * kRowsAtOnce) sumRows(const Eight* x, float* parts, int rows, int vectors, int slice) {
  const int vector = blockIdx.x * kLanes + threadIdx.x, end = min(rows, static_cast<int>(blockIdx.y + 1) * slice);
  float sums[8] = {};
  if (vector < vectors) {
#pragma unroll 4
    for (int row = blockIdx.y * slice + threadIdx.y; row < end; row += kRowsAtOnce) {
      const Eight values = x[static_cast<int64_t>(row) * vectors + vector];
#pragma unroll
      for (int i = 0; i < 8; i++) sums[i] += wide(values.at[i]);
    }
  }
  __shared__ float shared[kRowsAtOnce][8][kLanes];
#pragma unroll
  for (int i = 0; i < 8; i++) shared[threadIdx.y][i][threadIdx.x] = sums[i];
  __syncthreads();
  // thread (l, r) finishes column 8 l + r of the block
  float sum = 0;
#pragma unroll
  for (int row = 0; row < kRowsAtOnce; row++) sum += shared[row][threadIdx.y][threadIdx.x];
  if (vector < vectors) parts[(static_cast<int64_t>(blockIdx.y) * vectors + vector) * 8 + threadIdx.y] = sum;
}

struct Slices {
  int columnBlocks, count, rows;  // `count` slices of `rows` rows
};

Slices slicesOf(int rows, int columns) {
  const int columnBlocks = (columns / 8 + kLanes - 1) / kLanes;
  const int wanted = std::max(1, 4 * multiprocessors() / columnBlocks);
  const int slice = std::max(kRowsAtOnce, (rows + wanted - 1) / wanted);
  return {columnBlocks, (rows + slice - 1) / slice, slice};
}

}  // namespace

// The launchers; their contracts are in native/kernels.h.
#define GROVE_LAUNCHER extern "C" __attribute__((visibility("default")))

GROVE_LAUNCHER int64_t grove_column_sums_scratch(int rows, int columns) { return static_cast<int64_t>(slicesOf(rows, columns).count) * columns; }

GROVE_LAUNCHER int grove_column_sums(const void* x, void* out, float* parts, int rows, int columns, int adds, void* stream) {
  const Slices slices = slicesOf(rows, columns);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  sumRows<<<dim3(slices.columnBlocks, slices.count), dim3(kLanes, kRowsAtOnce), 0, on>>>(static_cast<const Eight*>(x), parts, rows, columns / 8,
                                                                                        slices.rows);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return static_cast<int>(status);
  return static_cast<int>(launchAddParts(parts, slices.count, columns, {static_cast<__nv_bfloat16*>(out), adds != 0}, {nullptr, false}, on));
}
