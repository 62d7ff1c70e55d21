// A row of logits in tiles of 1,024, one warp each: reading them, and what a softmax needs of each, so that many warps share a row. Used by sampler
// and trainer alike, every rounding spelled out (no product is left to be fused into a sum or not): the same logits give the same bits in both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <float.h>
#include <math_constants.h>
#include <stdint.h>

namespace {

constexpr int kPack = 8;                    // neighbours read in one go
constexpr int kPacks = 4;                   // of a lane in a tile
constexpr int kTile = 32 * kPack * kPacks;  // pack p of lane l begins at entry (32 p + l) kPack of its tile
constexpr float kLog2E = 1.4426950408889634f;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void loadAligned(const __nv_bfloat16* p, float (&x)[kPack]) {
  const uint4 eight = *reinterpret_cast<const uint4*>(p);
  const uint32_t pairs[kPack / 2] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < kPack / 2; i++) {  // a bfloat16 is the upper half of a float
    x[2 * i] = __uint_as_float(pairs[i] << 16), x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void loadAligned(const float* p, float (&x)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(p + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}

// Entries first .. first + 7 of a row, minus infinity behind its end. kAligned: rows begin at multiples of 16 bytes and have a multiple of 8 entries.
template <bool kAligned, class T>
__device__ __forceinline__ void loadPack(const T* row, int first, int vocab, float (&x)[kPack]) {
  if (kAligned && first < vocab) return loadAligned(row + first, x);
#pragma unroll
  for (int i = 0; i < kPack; i++) x[i] = !kAligned && first + i < vocab ? widen(row[first + i]) : -CUDART_INF_F;
}

template <bool kAligned, class T>
__device__ __forceinline__ void loadTile(const T* row, int tile, int lane, int vocab, float (&x)[kPacks][kPack]) {
#pragma unroll
  for (int p = 0; p < kPacks; p++) loadPack<kAligned>(row, tile * kTile + (32 * p + lane) * kPack, vocab, x[p]);
}

// All lanes get the same result.
__device__ __forceinline__ float warpMax(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ __forceinline__ float warpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = __fadd_rn(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

// The sum of this and all lower lanes.
__device__ __forceinline__ float warpScan(float x, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float before = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x += before;
  }
  return x;
}

__device__ __forceinline__ float exp2Approximate(float x) {  // two units in the last place
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger; NaN where either is, unlike fmaxf.
__device__ __forceinline__ float maxOrNan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
// What to subtract so that minus infinity stays itself where it is the maximum too.
__device__ __forceinline__ float finiteBase(float max) { return fmaxf(max, -FLT_MAX); }

// Of a tile or of a whole row: the largest logit; with weights w = exp(x - max): sum of w, and of w (x - max). A NaN among the logits is in the sums.
struct SoftmaxSums {
  float max, sum, weighted;
};

__device__ __forceinline__ SoftmaxSums sumTile(const float (&x)[kPacks][kPack]) {
  float max = -CUDART_INF_F;
#pragma unroll
  for (int p = 0; p < kPacks; p++) {
#pragma unroll
    for (int i = 0; i < kPack; i++) max = fmaxf(max, x[p][i]);
  }
  max = warpMax(max);
  const float base = finiteBase(max);
  float sum = 0, weighted = 0;
#pragma unroll
  for (int p = 0; p < kPacks; p++) {
#pragma unroll
    for (int i = 0; i < kPack; i++) {
      const float below = maxOrNan(__fsub_rn(x[p][i], base), -200.f);  // exp(-200) is 0 in float32; -infinity times 0 would be NaN
      const float w = exp2Approximate(__fmul_rn(below, kLog2E));
      sum = __fadd_rn(sum, w);
      weighted = __fmaf_rn(w, below, weighted);
    }
  }
  return {max, warpSum(sum), warpSum(weighted)};
}

// Sums of the tiles of all rows in device memory, plane by plane: [kPlanes, rows, stride], rows filled up with empty tiles. Where tokens are drawn,
// the last two are of the logits that may be drawn, at their temperature.
enum { kMax, kSum, kWeighted, kKeptMax, kKeptSum, kPlanes };
constexpr int kLaneTiles = 8;  // one behind the other, in the care of a lane where a warp has a row
constexpr int kMaxVocab = 32 * kLaneTiles * kTile;
inline __host__ __device__ int tileStride(int vocab) { return (vocab + kLaneTiles * kTile - 1) / (kLaneTiles * kTile) * kLaneTiles; }

struct TileSums {
  float* at;
  int rows, stride;
  __device__ __forceinline__ float* row(int plane, int row) const { return at + (static_cast<int64_t>(plane) * rows + row) * stride; }
};

using LaneSums = float[kLaneTiles];

__device__ __forceinline__ void loadSums(const TileSums& tiles, int plane, int row, int lane, LaneSums& out) {
  const int first = lane * kLaneTiles;
  if (first < tiles.stride) return loadAligned(tiles.row(plane, row) + first, out);
#pragma unroll
  for (int k = 0; k < kLaneTiles; k++) out[k] = plane == kMax || plane == kKeptMax ? -CUDART_INF_F : 0.f;
}

__device__ __forceinline__ float warpMax(const LaneSums& x) {
  float max = x[0];
#pragma unroll
  for (int k = 1; k < kLaneTiles; k++) max = fmaxf(max, x[k]);
  return warpMax(max);
}

// Sums of the whole row, from those of its tiles.
__device__ __forceinline__ SoftmaxSums sumRow(const LaneSums& maxOf, const LaneSums& sumOf, const LaneSums& weightedOf) {
  const float max = warpMax(maxOf), base = finiteBase(max);
  float sum = 0, weighted = 0;
#pragma unroll
  for (int k = 0; k < kLaneTiles; k++) {
    const float below = fmaxf(__fsub_rn(maxOf[k], base), -200.f), share = exp2Approximate(__fmul_rn(below, kLog2E));
    sum = __fmaf_rn(share, sumOf[k], sum);
    weighted = __fmaf_rn(share, __fmaf_rn(below, sumOf[k], weightedOf[k]), weighted);
  }
  return {max, warpSum(sum), warpSum(weighted)};
}

__device__ __forceinline__ float logprobOf(float logit, const SoftmaxSums& row) {
  return __fsub_rn(__fsub_rn(logit, finiteBase(row.max)), logf(row.sum));
}
__device__ __forceinline__ float entropyOf(const SoftmaxSums& row) { return __fsub_rn(logf(row.sum), __fdiv_rn(row.weighted, row.sum)); }

}  // namespace
