// The C ABI of libgrove_kernels.so: raw device pointers and a stream, no torch. Each launcher returns 0, or a cudaError_t.
#pragma once

#include <stdint.h>

// param: float32 [n] (low == NULL) or bfloat16 [n] with its low halves [n]; grad: float32 or bfloat16 [n]; m, v: float32 [n];
// gradScale: one float32; gain = 1 - beta, taken before rounding to float32. See native/adamw.cc for the meaning.
typedef int (*GroveAdamwLauncher)(void* param, const void* grad, int gradIsBfloat16, int16_t* low, float* m, float* v,
                                  const float* gradScale, int64_t n, float decay, float beta1, float gain1, float beta2,
                                  float gain2, float eps, float stepSize, float rsqrtCorrection2, void* stream);

// bfloat16 throughout, contiguous; shapes and meaning in native/decode_attention.cc. partial: float32 [chunks * groups * groupSize * heads,
// headDim], partialLse without the last dimension, both scratch; arrived: [2 * groups * kvHeads], zero before and after. headDim 64 or 128,
// heads / kvHeads at most 16.
typedef int (*GroveDecodeAttentionLauncher)(const void* qkv, const void* cos, const void* sin, void* ownK, void* ownV, const void* promptK,
                                            const void* promptV, const int* rows, const int* promptStart, const int* promptLength,
                                            const int* ownLength, void* out, float* partial, float* partialLse, unsigned* arrived,
                                            int groups, int groupSize, int heads, int kvHeads, int headDim, int ownSlots, int chunks,
                                            int chunkKeys, float scale, void* stream);

// 1 where the current device can run it with this head size, else 0.
typedef int (*GroveDecodeAttentionFits)(int headDim);

// What a launcher returns, having done nothing, on a device that its kernel is not made for.
#define kGroveNotOnThisDevice (-1)

// out = x w^T + residual: x [m, k], w [n, k], residual and out [m, n], all bfloat16, contiguous, aligned to 16 bytes; m at most 128, k a
// multiple of 128. Compute capability 9.0.
typedef int (*GroveOrderedLinearLauncher)(const void* x, const void* w, const void* residual, void* out, int m, int n, int k, void* stream);
