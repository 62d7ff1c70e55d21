// grove_rms_norm: out = x / sqrt(mean(x^2) + eps) * weight by rows, in float32, rounded once; one block a row, the row in registers. What training's
// forward and a decode step compute alike; chained, since in a decode step it stands between two products.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // of eight values, a thread

struct __align__(16) Eight {
  __nv_bfloat162 pair[4];
};

__global__ void __launch_bounds__(kThreads)
    rmsNorm(const Eight* x, const Eight* weight, Eight* out, float* scales, int vectors, float eps) {
  letNextStart();
  waitForPrevious();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * vectors;
  Eight row[kVectors];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int at = threadIdx.x + i * kThreads;
    if (at >= vectors) continue;
    row[i] = x[start + at];
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
  for (int i = 0; i < kVectors; i++) {
    const int at = threadIdx.x + i * kThreads;
    if (at >= vectors) continue;
    const Eight gain = weight[at];
    Eight scaled;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float2 pair = __bfloat1622float2(row[i].pair[e]), by = __bfloat1622float2(gain.pair[e]);
      scaled.pair[e] = __floats2bfloat162_rn(pair.x * scale * by.x, pair.y * scale * by.y);
    }
    out[start + at] = scaled;
  }
}

}  // namespace

// The launcher; its contract is GroveRmsNormLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_rms_norm(const void* x, const void* weight, void* out, float* scales, int rows,
                                                                     int columns, float eps, void* stream) {
  if (columns % 8 != 0 || columns > 8 * kVectors * kThreads) return static_cast<int>(cudaErrorInvalidValue);
  return static_cast<int>(launchChained(rmsNorm, dim3(rows), dim3(kThreads), 0, static_cast<cudaStream_t>(stream),
                                        static_cast<const Eight*>(x), static_cast<const Eight*>(weight), static_cast<Eight*>(out), scales,
                                        columns / 8, eps));
}
