// The rotary embedding by a table in bfloat16 or float32 (native/pointwise.cc), of eight values of a head's first half and those half a head behind.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "bfloat16_vector.cuh"

namespace {

// Eight neighbouring entries of a table, as float32.
template <class T>
struct Table;
template <>
struct Table<float> {
  static __device__ __forceinline__ void load(const float* p, float (&out)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  }
  static __device__ __forceinline__ float kept(float x) { return x; }
};
template <>
struct Table<__nv_bfloat16> {
  static __device__ __forceinline__ void load(const __nv_bfloat16* p, float (&out)[8]) {
    const Eight e = *reinterpret_cast<const Eight*>(p);
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = wide(e.at[i]);
  }
  static __device__ __forceinline__ float kept(float x) { return rounded(x); }
};

// a cos + roll(a) sin, or with `backward` the same map transposed, for values [c, c + 8) of both halves of a head of D; cosines and sines: the token's.
template <class T>
__device__ __forceinline__ void turn(const float (&low)[8], const float (&high)[8], const T* cosines, const T* sines, int c, int D, bool backward,
                                     Eight& newLow, Eight& newHigh) {
  float cosLow[8], cosHigh[8], sinLow[8], sinHigh[8];
  Table<T>::load(cosines + c, cosLow);
  Table<T>::load(cosines + D / 2 + c, cosHigh);
  Table<T>::load(sines + (backward ? D / 2 : 0) + c, sinLow);
  Table<T>::load(sines + (backward ? 0 : D / 2) + c, sinHigh);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    newLow.at[i] = narrow(Table<T>::kept(low[i] * cosLow[i]) + high[i] * sinLow[i]);
    newHigh.at[i] = narrow(Table<T>::kept(high[i] * cosHigh[i]) + low[i] * sinHigh[i]);
  }
}

}  // namespace
