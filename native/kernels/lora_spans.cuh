// What the kernels of adapters have in common.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "../kernels.h"

namespace {

// Values k and k + 1 of a row of `rank` values.
__device__ __forceinline__ uint32_t pairOf(const __nv_bfloat16* row, int k, int rank) {
  return k < rank ? *reinterpret_cast<const uint32_t*>(row + k) : 0;
}

// Whether every span begins and ends between groups of eight columns.
inline bool spansFit(const GroveLoraSpans& spans) {
  for (int i = 0; i < spans.count; i++) {
    if (spans.column[i] % 8 != 0 || spans.columns[i] % 8 != 0) return false;
  }
  return spans.count >= 1 && spans.count <= kGroveMostLoraSpans;
}

}  // namespace
