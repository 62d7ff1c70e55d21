// Sums of columns in two kernels: some kernel leaves partial sums of rows, float32 [parts, columns]; addParts adds them up. The order of every sum is
// that of the parts, so a result depends on how many there are and on nothing else.
#pragma once

#include <cuda_runtime.h>

#include "bfloat16_vector.cuh"

namespace {

constexpr int kPartColumns = 32, kPartRows = 16;  // of a block of addParts

// Where a sum goes, or nullptr where nobody wants it; `adds`: to what stands there already.
struct ColumnSum {
  __nv_bfloat16* out;
  bool adds;
};

// blockIdx.y picks one of two arrays of parts, one behind the other, and its sum.
__global__ void __launch_bounds__(kPartColumns * kPartRows) addParts(const float* parts, int count, int columns, ColumnSum first, ColumnSum second) {
  const ColumnSum to = blockIdx.y == 0 ? first : second;
  if (to.out == nullptr) return;
  const int column = blockIdx.x * kPartColumns + threadIdx.x;
  const float* from = parts + static_cast<int64_t>(blockIdx.y) * count * columns + column;
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int p = threadIdx.y; p < count; p += kPartRows) sum += from[static_cast<int64_t>(p) * columns];
  }
  __shared__ float sums[kPartRows][kPartColumns];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
#pragma unroll
  for (int row = 1; row < kPartRows; row++) sum += sums[row][threadIdx.x];
  to.out[column] = narrow(to.adds ? wide(to.out[column]) + sum : sum);
}

inline cudaError_t launchAddParts(const float* parts, int count, int columns, ColumnSum first, ColumnSum second, cudaStream_t stream) {
  if (first.out == nullptr && second.out == nullptr) return cudaSuccess;
  const dim3 grid((columns + kPartColumns - 1) / kPartColumns, second.out == nullptr ? 1 : 2);
  addParts<<<grid, dim3(kPartColumns, kPartRows), 0, stream>>>(parts, count, columns, first, second);
  return cudaGetLastError();
}

inline int multiprocessors() {
  int device = 0, count = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

}  // namespace
