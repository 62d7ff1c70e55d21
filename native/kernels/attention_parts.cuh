// How parts of one softmax over disjoint keys are added up, in training (merge_parts.cu) and in decode (decode_attention.cu) alike: to the bit.
//
// A part has a log-sum-exp and values, rounded to bfloat16 as FlashAttention writes them. With m the largest log-sum-exp,
//   weight_p = exp(lse_p - m),   out = (sum_p weight_p out_p) (1 / sum_p weight_p),   lse = m + log(sum_p weight_p),
// sums in the order of the parts, in float32. A part without finite numbers has a log-sum-exp of +infinity and makes all of it NaN.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

namespace {

// Eight neighbouring values in one access.
struct __align__(16) Eight {
  __nv_bfloat16 at[8];
};
__device__ __forceinline__ Eight loadEight(const __nv_bfloat16* p) { return *reinterpret_cast<const Eight*>(p); }
__device__ __forceinline__ void storeEight(__nv_bfloat16* p, const Eight& x) { *reinterpret_cast<Eight*>(p) = x; }

// Adds eight values of a part.
__device__ __forceinline__ void addPart(float (&sum)[8], const Eight& out, float weight) {
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] = __fmaf_rn(weight, __bfloat162float(out.at[i]), sum[i]);
}
__device__ __forceinline__ float partWeight(float lse, float most) { return expf(__fsub_rn(lse, most)); }
__device__ __forceinline__ float addWeight(float total, float weight) { return __fadd_rn(total, weight); }
__device__ __forceinline__ float partShare(float total) { return __frcp_rn(total); }
__device__ __forceinline__ Eight mergedValues(const float (&sum)[8], float share) {
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) result.at[i] = __float2bfloat16_rn(__fmul_rn(sum[i], share));
  return result;
}
__device__ __forceinline__ float mergedLse(float most, float total) { return __fadd_rn(most, logf(total)); }

}  // namespace
