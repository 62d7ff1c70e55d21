// grove_add_rows: table[ids[i]] += rows[i], an embedding's gradient into where it accumulates. A block takes all rows of one id, in their order, in
// float32 and rounds once.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "bfloat16_vector.cuh"

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    addRows(const int64_t* ids, const int64_t* order, const Eight* rows, Eight* table, int count, int vectors, int64_t except0, int64_t except1) {
  const int first = blockIdx.x, at = blockIdx.y * kThreads + threadIdx.x;
  const int64_t id = ids[first];
  if ((first > 0 && ids[first - 1] == id) || id == except0 || id == except1 || at >= vectors) return;
  Eight* place = table + id * vectors + at;
  const Eight before = *place;
  float sums[8];
#pragma unroll
  for (int i = 0; i < 8; i++) sums[i] = wide(before.at[i]);
#pragma unroll 4
  for (int j = first; j < count && ids[j] == id; j++) {
    const Eight row = rows[order[j] * vectors + at];
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] += wide(row.at[i]);
  }
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) result.at[i] = narrow(sums[i]);
  *place = result;
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_add_rows(const int64_t* ids, const int64_t* order, const void* rows, void* table,
                                                                     int count, int columns, int64_t except0, int64_t except1, void* stream) {
  if (columns % 8 != 0) return static_cast<int>(cudaErrorInvalidValue);
  const dim3 grid(count, (columns / 8 + kThreads - 1) / kThreads);
  addRows<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(ids, order, static_cast<const Eight*>(rows), static_cast<Eight*>(table), count,
                                                                   columns / 8, except0, except1);
  return static_cast<int>(cudaGetLastError());
}
