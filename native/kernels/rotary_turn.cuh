// The rotary embedding of sixteen values of a head, as decode_attention.cu does it where it reads them.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "matrix_units.cuh"

namespace {

// Two neighbouring values, the first in the lower half.
__device__ __forceinline__ float lower(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float upper(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// x cos + roll(x) sin for eight values of a head and those half a head behind them, rounded as the model's operators round it (src/model/rope.ts);
// sin's first half is negated already.
struct Turn {
  uint4 x, y, cosX, cosY, sinX, sinY;

  static __device__ __forceinline__ uint4 read(const __nv_bfloat16* p) { return *reinterpret_cast<const uint4*>(p); }
  template <int D>
  __device__ __forceinline__ void loadTable(const __nv_bfloat16* cos, const __nv_bfloat16* sin) {
    cosX = read(cos), cosY = read(cos + D / 2), sinX = read(sin), sinY = read(sin + D / 2);
  }
  template <int D>
  __device__ __forceinline__ void loadHead(const __nv_bfloat16* head) {
    x = read(head), y = read(head + D / 2);
  }
  __device__ __forceinline__ void takeTable(const Turn& of) { cosX = of.cosX, cosY = of.cosY, sinX = of.sinX, sinY = of.sinY; }
  template <int D>
  __device__ __forceinline__ void load(const __nv_bfloat16* head, const __nv_bfloat16* cos, const __nv_bfloat16* sin) {
    loadHead<D>(head);
    loadTable<D>(cos, sin);
  }
  static __device__ __forceinline__ uint32_t turned(uint32_t own, uint32_t other, uint32_t cosine, uint32_t sine) {
    const __nv_bfloat162 product = __hmul2_rn(*reinterpret_cast<__nv_bfloat162*>(&own), *reinterpret_cast<__nv_bfloat162*>(&cosine));
    const uint32_t kept = *reinterpret_cast<const uint32_t*>(&product);
    return pack(__fmaf_rn(lower(other), lower(sine), lower(kept)), __fmaf_rn(upper(other), upper(sine), upper(kept)));
  }
  __device__ __forceinline__ uint4 low() const {
    return {turned(x.x, y.x, cosX.x, sinX.x), turned(x.y, y.y, cosX.y, sinX.y), turned(x.z, y.z, cosX.z, sinX.z),
            turned(x.w, y.w, cosX.w, sinX.w)};
  }
  __device__ __forceinline__ uint4 high() const {
    return {turned(y.x, x.x, cosY.x, sinY.x), turned(y.y, x.y, cosY.y, sinY.y), turned(y.z, x.z, cosY.z, sinY.z),
            turned(y.w, x.w, cosY.w, sinY.w)};
  }
};

}  // namespace
