// An adapter's product t b^T beside the sums of a tile of skinny_linear.cu, by the instruction and in the order of lora_up.cu: the same bits.
#pragma once

#include "hopper.cuh"
#include "lora_spans.cuh"
#include "matrix_units.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
namespace {

// To bfloat16 and back, two at once: one at a time has a sixteenth of the rate.
__device__ __forceinline__ float2 rounded(float2 x) { return __bfloat1622float2(__floats2bfloat162_rn(x.x, x.y)); }

// Rows [row, row + 8) of b, a row for each of eight columns of the product, and the projection that they belong to; none: -1.
struct LoraColumns {
  int projection = -1, row = 0;
  __device__ __forceinline__ LoraColumns(const GroveLoraSpans& spans, int column) {
#pragma unroll
    for (int i = 0; i < kGroveMostLoraSpans; i++) {
      const int place = column - spans.column[i];
      if (i < spans.count && place >= 0 && place < spans.columns[i]) projection = i, row = spans.row[i] + place;
    }
  }
};

// Asks for what a tile will read of b, which no kernel of the step writes.
template <int WIDTH, int PARTS>
__device__ __forceinline__ void fetchLora(const GroveLora& lora, int n, int firstColumn) {
  for (int group = threadIdx.x; group < WIDTH / 8 * PARTS; group += 128) {
    const LoraColumns columns(lora.spans, group / (WIDTH / 8) * n + firstColumn + group % (WIDTH / 8) * 8);
    if (columns.projection < 0) continue;
    const char* from = static_cast<const char*>(lora.b) + static_cast<int64_t>(columns.row) * lora.rank * 2;
    for (int byte = 0; byte < 16 * lora.rank; byte += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + byte));
  }
}

// t b^T for a thread's places in a tile: WIDTH columns from firstColumn on of each of PARTS parts of n columns. Taken before the tile's own sums: t and b
// arrive when x does. Taken after them, with what it needs asked for before, it is as fast with 64 rows and slower with 128, whose sums fill the registers.
template <int WIDTH, int PARTS, bool ADAPTED>
struct LoraSums {
  static constexpr int kGroups = WIDTH / 8;
  float d[kGroups * PARTS][4];

  __device__ __forceinline__ void take(const GroveLora& lora, int rows, int n, int row, int firstColumn) {
    const int width = lora.spans.count * lora.rank, lane = threadIdx.x % 32;  // of t
    const __nv_bfloat16* upper = static_cast<const __nv_bfloat16*>(lora.t) + min(row, rows - 1) * width;  // rows behind the last are not written
    const __nv_bfloat16* lower = static_cast<const __nv_bfloat16*>(lora.t) + min(row + 8, rows - 1) * width;
    const __nv_bfloat16* b = static_cast<const __nv_bfloat16*>(lora.b) + lane / 4 * lora.rank;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      const LoraColumns first(lora.spans, part * n + firstColumn), last(lora.spans, part * n + firstColumn + WIDTH - 8);
      if (first.projection == last.projection && first.projection >= 0) {
        const int of = first.projection * lora.rank;
        products<kGroups>(&d[part * kGroups], upper + of, lower + of, b + static_cast<int64_t>(first.row) * lora.rank, lora.rank);
        continue;
      }
#pragma unroll
      for (int g = 0; g < kGroups; g++) {
        const LoraColumns columns(lora.spans, part * n + firstColumn + 8 * g);
        const int of = columns.projection * lora.rank;
        if (columns.projection >= 0) {
          products<1>(&d[part * kGroups + g], upper + of, lower + of, b + static_cast<int64_t>(columns.row) * lora.rank, lora.rank);
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) d[part * kGroups + g][i] = -0.0f;  // what it is added to keeps its sign too
        }
      }
    }
  }

  // Of GROUPS groups of eight columns, for which b has rows one after the other.
  template <int GROUPS>
  static __device__ __forceinline__ void products(float (*d)[4], const __nv_bfloat16* upper, const __nv_bfloat16* lower, const __nv_bfloat16* b,
                                                  int rank) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
#pragma unroll
      for (int i = 0; i < 4; i++) d[g][i] = 0;
    }
#pragma unroll 1
    for (int k = threadIdx.x % 4 * 2; k < rank + static_cast<int>(threadIdx.x % 4 * 2); k += 16) {
      const uint32_t a[4] = {pairOf(upper, k, rank), pairOf(lower, k, rank), pairOf(upper, k + 8, rank), pairOf(lower, k + 8, rank)};
#pragma unroll
      for (int g = 0; g < GROUPS; g++) multiply(d[g], a, pairOf(b + 8 * g * rank, k, rank), pairOf(b + 8 * g * rank, k + 8, rank));
    }
  }

  // A pair of sums, with all that is added to them but the adapter: rounded, and the adapter's share added.
  __device__ __forceinline__ float2 addTo(float2 value, int at) const {
    value = rounded(value);
    return {value.x + d[at / 4][at % 4], value.y + d[at / 4][at % 4 + 1]};
  }
  __device__ __forceinline__ float size(int at) const { return fabsf(d[at / 4][at % 4]); }
};

template <int WIDTH, int PARTS>
struct LoraSums<WIDTH, PARTS, false> {
  __device__ __forceinline__ void take(const GroveLora&, int, int, int, int) {}
  __device__ __forceinline__ float2 addTo(float2 value, int) const { return value; }
  __device__ __forceinline__ float size(int) const { return 0; }
};

}  // namespace
#endif
