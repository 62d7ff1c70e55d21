// grove_rms_norm: out = x / sqrt(mean(x^2) + eps) * weight by rows, in float32, rounded once; one block a row, the row in registers. What training's
// forward and a decode step compute alike; chained, since in a decode step it stands between two products. There it is all latency: everything is
// asked for together, and a block has no more registers than its row needs, so that blocks of the next product find room beside it.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kMostVectors = 4;  // of eight values, a thread

struct __align__(16) Eight {
  __nv_bfloat162 pair[4];
};

template <int VECTORS>
__global__ void __launch_bounds__(kThreads)
    rmsNorm(const Eight* x, const Eight* weight, Eight* out, float* scales, int vectors, float eps) {
  letNextStart();
  waitForPrevious();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * vectors;
  Eight row[VECTORS], gains[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * kThreads;
    if (at < vectors) row[i] = x[start + at];
  }
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * kThreads;
    if (at < vectors) gains[i] = weight[at];
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    if (threadIdx.x + i * kThreads >= vectors) continue;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float2 pair = __bfloat1622float2(row[i].pair[e]);
      sum += pair.x * pair.x;
      sum += pair.y * pair.y;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  __shared__ float parts[kThreads / 32];
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) sum += parts[i];
  const float scale = rsqrtf(sum / static_cast<float>(8 * vectors) + eps);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * kThreads;
    if (at >= vectors) continue;
    Eight scaled;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float2 pair = __bfloat1622float2(row[i].pair[e]), by = __bfloat1622float2(gains[i].pair[e]);
      scaled.pair[e] = __floats2bfloat162_rn(pair.x * scale * by.x, pair.y * scale * by.y);
    }
    out[start + at] = scaled;
  }
}

}  // namespace

// The launcher; its contract is GroveRmsNormLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_rms_norm(const void* x, const void* weight, void* out, float* scales, int rows,
                                                                     int columns, float eps, void* stream) {
  if (columns % 8 != 0 || columns > 8 * kMostVectors * kThreads) return static_cast<int>(cudaErrorInvalidValue);
  const int vectors = (columns + 8 * kThreads - 1) / (8 * kThreads);
  const auto kernel = vectors <= 1 ? rmsNorm<1> : vectors == 2 ? rmsNorm<2> : rmsNorm<kMostVectors>;
  return static_cast<int>(launchChained(kernel, dim3(rows), dim3(kThreads), 0, static_cast<cudaStream_t>(stream), static_cast<const Eight*>(x),
                                        static_cast<const Eight*>(weight), static_cast<Eight*>(out), scales, columns / 8, eps));
}
