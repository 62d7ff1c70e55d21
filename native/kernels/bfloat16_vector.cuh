// Eight bfloat16 values, 16 bytes, as element-wise kernels read and write them.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

namespace {

struct __align__(16) Eight {
  __nv_bfloat16 at[8];
};

__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
__device__ __forceinline__ float rounded(float x) { return wide(narrow(x)); }

}  // namespace
