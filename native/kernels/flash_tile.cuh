// A tile of attention with the arithmetic of FlashAttention-2's forward as libtorch builds it (the kernel behind aten::_flash_attention_forward),
// step by step: blocks of keys from the last to the first, the same matrix instructions, the same order of sums, and products fused into sums
// where it fuses them. Only what the bits do not depend on is free: which warp computes which scores, and which columns of the values.
#pragma once

#include <cuda_bf16.h>
#include <math_constants.h>
#include <stdint.h>

#include "hopper.cuh"
#include "matrix_units.cuh"

namespace {

// ROWS rows in shared memory, in columns of 64 values one behind the other: 128 bytes of a row, their 16-byte chunks permuted so that eight rows of
// one chunk lie in different banks. It is the layout that wgmma knows as swizzled by 128 bytes; a column starts at a multiple of 1024 bytes.
template <int ROWS>
__device__ __forceinline__ __nv_bfloat16* at(__nv_bfloat16* tile, int row, int chunk) {
  return tile + (chunk >> 3) * (ROWS * 64) + row * 64 + (((chunk ^ row) & 7) << 3);
}

// The softmax of 16 rows over blocks of BN keys; a thread holds rows lane / 4 and lane / 4 + 8, or with HALVES = 1 the former alone.
template <int BN, int HALVES>
struct Softmax {
  float max[2], sum[2];

  __device__ __forceinline__ void clear() {
    max[0] = max[1] = -CUDART_INF_F;
    sum[0] = sum[1] = 0;
  }

  // The largest score is `most` now.
  __device__ __forceinline__ void raise(int r, float most, float scaleLog2, float& fade) {
    fade = exp2f((max[r] - (most == -CUDART_INF_F ? 0.f : most)) * scaleLog2);
    max[r] = most;
  }
  __device__ __forceinline__ float weight(int r, float score, float scaleLog2) const {
    return exp2f(__fsub_rn(__fmul_rn(score, scaleLog2), max[r] == -CUDART_INF_F ? 0.f : max[r] * scaleLog2));
  }

  // Takes the scores of a block, hidden ones at -infinity; leaves their weights in `s`, and in `fade` what the sums so far are to be multiplied by.
  __device__ __forceinline__ void weigh(float (&s)[BN / 8][4], float scaleLog2, float (&fade)[2]) {
#pragma unroll
    for (int r = 0; r < HALVES; r++) {
      float most = max[r];
#pragma unroll
      for (int j = 0; j < BN / 8; j++) most = fmaxf(fmaxf(most, s[j][2 * r]), s[j][2 * r + 1]);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      raise(r, most, scaleLog2, fade[r]);
#pragma unroll
      for (int j = 0; j < BN / 8; j++) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
          s[j][e] = weight(r, s[j][e], scaleLog2);
          sum[r] = j == 0 && e == 2 * r ? __fmaf_rn(sum[r], fade[r], s[j][e]) : sum[r] + s[j][e];
        }
      }
    }
  }

  // The log-sum-exps, +infinity where there is no number, and what the sums of values are to be multiplied by.
  __device__ __forceinline__ void finish(float scale, float (&lse)[2], float (&share)[2]) {
#pragma unroll
    for (int r = 0; r < HALVES; r++) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 2);
      total += __shfl_xor_sync(~0u, total, 1);
      share[r] = total == 0.f || total != total ? 1.f : 1.f / total;
      lse[r] = total == 0.f || total != total ? CUDART_INF_F : __fmaf_rn(max[r], scale, __logf(total));
    }
  }
};

template <int COLUMNS, int HALVES>
__device__ __forceinline__ void scaleRows(float (&out)[COLUMNS / 8][4], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < COLUMNS / 8; i++)
#pragma unroll
    for (int e = 0; e < 2 * HALVES; e++) out[i][e] *= by[e / 2];
}

// scores [16, KEYS] += q [16, D] times rows `first` to first + KEYS of keys [ROWS, D]^T in shared memory. Step by step along D over all keys: the
// products of a step do not wait for each other.
template <int D, int ROWS, int KEYS>
__device__ __forceinline__ void scoreKeys(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], __nv_bfloat16* keys, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t b[KEYS / 16][4];
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
      loadMatrix(b[j], at<ROWS>(keys, first + 16 * j + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
    }
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
      multiply(s[2 * j], q[k], b[j][0], b[j][1]);
      multiply(s[2 * j + 1], q[k], b[j][2], b[j][3]);
    }
  }
}

// out [16, COLUMNS] += weights [16, 16] times rows `row` to row + 16, columns `first` to first + COLUMNS of values [ROWS, ..] in shared memory.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void addValues(float (&out)[COLUMNS / 8][4], const uint32_t (&weights)[4], __nv_bfloat16* values, int row, int first) {
  const int lane = threadIdx.x % 32;
  uint32_t b[COLUMNS / 16][4];
#pragma unroll
  for (int i = 0; i < COLUMNS / 16; i++) {
    loadMatrixTransposed(b[i], at<ROWS>(values, row + (lane & 15), first / 8 + 2 * i + (lane >> 4)));
  }
#pragma unroll
  for (int i = 0; i < COLUMNS / 16; i++) {
    multiply(out[2 * i], weights, b[i][0], b[i][1]);
    multiply(out[2 * i + 1], weights, b[i][2], b[i][3]);
  }
}

// scoreKeys for eight or sixteen keys: two steps along D in one access.
template <int D, int ROWS, int KEYS>
__device__ __forceinline__ void scoreFew(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], __nv_bfloat16* keys, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < D / 16; k += 2)
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
      uint32_t b[4];
      loadMatrix(b, at<ROWS>(keys, first + 8 * j + (lane & 7), 2 * k + (lane >> 3)));
      multiply(s[j], q[k], b[0], b[1]);
      multiply(s[j], q[k + 1], b[2], b[3]);
    }
}

// out [16, COLUMNS] += weights [16, ROWS] times columns `first` on, eight or sixteen, of values [ROWS, ..].
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void addFew(float (&out)[COLUMNS / 8][4], const uint32_t (&weights)[ROWS / 16][4], __nv_bfloat16* values, int first) {
  const int lane = threadIdx.x % 32;
  if constexpr (COLUMNS == 8) {
#pragma unroll
    for (int j = 0; j < ROWS / 16; j += 2) {
      uint32_t b[4];
      loadMatrixTransposed(b, at<ROWS>(values, 16 * j + lane, first / 8));
      multiply(out[0], weights[j], b[0], b[1]);
      multiply(out[0], weights[j + 1], b[2], b[3]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < ROWS / 16; j++) addValues<ROWS, COLUMNS>(out, weights[j], values, 16 * j, first);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// The same for the 64 rows of four warps that do it together, by wgmma: it has the bits of mma and reads what it multiplies with once, not once
// for each warp. What the copies wrote is to be published by publishCopies before the barrier.
template <int TRANSPOSED>
__device__ __forceinline__ void multiply64(float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, %37;"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANSPOSED));
}
template <int N>
__device__ __forceinline__ void pin(float (&d)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}
__device__ __forceinline__ void publishCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int D, int KEYS>
__device__ __forceinline__ void scoreKeysTogether(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], __nv_bfloat16* keys) {
  pin(s);
  productsBegin();
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int n = 0; n < KEYS / 64; n++) multiply64<0>(s + 8 * n, q[k], matrixAt(keys + (k / 4 * KEYS + 64 * n) * 64) + k % 4 * 2);
  productsCommit();
  productsWait<0>();
  pin(s);
}
// `meanwhile` is done while the products are under way.
template <int D, int KEYS, class Meanwhile>
__device__ __forceinline__ void addValuesTogether(float (&out)[D / 8][4], const uint32_t (&weights)[KEYS / 16][4], __nv_bfloat16* values,
                                                  Meanwhile meanwhile) {
  pin(out);
  productsBegin();
#pragma unroll
  for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
    for (int n = 0; n < D / 64; n++) multiply64<1>(out + 8 * n, weights[j], matrixAt(values + (n * KEYS + 16 * j) * 64));
  productsCommit();
  meanwhile();
  productsWait<0>();
  pin(out);
}
#else
__device__ __forceinline__ void publishCopies() {}

template <int D, int KEYS>
__device__ __forceinline__ void scoreKeysTogether(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], __nv_bfloat16* keys) {
  scoreKeys<D, KEYS, KEYS>(s, q, keys, 0);
}
template <int D, int KEYS, class Meanwhile>
__device__ __forceinline__ void addValuesTogether(float (&out)[D / 8][4], const uint32_t (&weights)[KEYS / 16][4], __nv_bfloat16* values,
                                                  Meanwhile meanwhile) {
  meanwhile();
#pragma unroll
  for (int j = 0; j < KEYS / 16; j++) addValues<KEYS, D>(out, weights[j], values, 16 * j, 0);
}
#endif

// The 16 rows from `firstRow` on of a tile of ROWS rows, as the left side of products; a tile of 8 is taken twice.
template <int ROWS, int STEPS>
__device__ __forceinline__ void loadLeft(uint32_t (&left)[STEPS][4], __nv_bfloat16* tile, int firstRow) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < STEPS; k++) loadMatrix(left[k], at<ROWS>(tile, firstRow + (lane & (ROWS < 16 ? ROWS - 1 : 15)), 2 * k + (lane >> 4)));
}

template <int N>
__device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) x[j][e] = 0;
}

// Hides keys from `end` on; the block begins at `begin`.
template <int BN>
__device__ __forceinline__ void hide(float (&s)[BN / 8][4], int begin, int end) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < BN / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (begin + 8 * j + lane % 4 * 2 + (e & 1) >= end) s[j][e] = -CUDART_INF_F;
}

}  // namespace
