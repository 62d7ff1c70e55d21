// grove_lora_up: y[:, columns of i] += t_i b_i^T for adapters side by side, t [T, n r], b [M, r], y [T, N] in place: one rounding, of the sum with y.
// A warp has sixteen rows and 64 columns, a block four warps of the same columns; the next block has the next columns. A sum's terms are added in the order
// of r whatever the number of rows.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../kernels.h"
#include "bfloat16_vector.cuh"
#include "launch.cuh"
#include "lora_spans.cuh"
#include "matrix_units.cuh"

namespace {

constexpr int kWarps = 4, kRows = 16, kColumns = 64, kGroup = 32, kTiles = kGroup / 8, kGroups = kColumns / kGroup, kStep = 16;

__global__ void __launch_bounds__(kWarps * 32)
    up(__nv_bfloat16* y, const __nv_bfloat16* t, const __nv_bfloat16* b, GroveLoraSpans spans, int T, int N, int r) {
  letNextStart();
  waitForPrevious();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4, i = blockIdx.z;
  const int columns = spans.columns[i], first = blockIdx.x * kColumns, row = (blockIdx.y * kWarps + warp) * kRows + group;
  if (first >= columns) return;
  const int64_t R = static_cast<int64_t>(spans.count) * r;
  const __nv_bfloat16* upper = t + min(row, T - 1) * R + i * r;  // rows behind the last one are computed and not written
  const __nv_bfloat16* lower = t + min(row + 8, T - 1) * R + i * r;
  const __nv_bfloat16* matrix = b + static_cast<int64_t>(spans.row[i]) * r;
  float d[kGroups][kTiles][4] = {};
  for (int k = 2 * place; k < r + 2 * place; k += kStep) {
    const uint32_t a[4] = {pairOf(upper, k, r), pairOf(lower, k, r), pairOf(upper, k + 8, r), pairOf(lower, k + 8, r)};
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        // Column c of tile j is column c / 2 * 8 + 2 j + c % 2 of the 32: a thread then has eight columns that lie side by side.
        const int column = min(first + g * kGroup + group / 2 * 8 + 2 * j + group % 2, columns - 1);
        const __nv_bfloat16* factor = matrix + static_cast<int64_t>(column) * r;
        multiply(d[g][j], a, pairOf(factor, k, r), pairOf(factor, k + 8, r));
      }
    }
  }
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    const int column = first + g * kGroup + place * 8;
    if (column >= columns) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (row + 8 * half >= T) continue;
      Eight* at = reinterpret_cast<Eight*>(y + static_cast<int64_t>(row + 8 * half) * N + spans.column[i] + column);
      Eight values = *at;
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int c = 0; c < 2; c++) values.at[2 * j + c] = narrow(wide(values.at[2 * j + c]) + d[g][j][2 * half + c]);
      }
      *at = values;
    }
  }
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_lora_up(void* y, const GroveLora* lora, int rows, int N, void* stream) {
  const GroveLoraSpans& spans = lora->spans;
  if (N % 8 != 0 || lora->rank % 2 != 0 || !spansFit(spans)) return static_cast<int>(cudaErrorInvalidValue);
  int widest = 0;
  for (int i = 0; i < spans.count; i++) widest = spans.columns[i] > widest ? spans.columns[i] : widest;
  const dim3 grid((widest + kColumns - 1) / kColumns, (rows + kWarps * kRows - 1) / (kWarps * kRows), spans.count);
  return static_cast<int>(launchChained(up, grid, dim3(kWarps * 32), 0, static_cast<cudaStream_t>(stream), static_cast<__nv_bfloat16*>(y),
                                        static_cast<const __nv_bfloat16*>(lora->t), static_cast<const __nv_bfloat16*>(lora->b), spans, rows, N,
                                        lora->rank));
}
