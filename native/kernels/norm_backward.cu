// grove_norm_backward: the backward of an RMS norm or a layer norm, with the gradient that reaches its input past it. With y = (x - mean) scale (an RMS
// norm: x scale), out = y w (+ b), g = dout w and means over a row,
//   dx = addend + scale (g - mean(g) - y mean(g y))   (an RMS norm: without mean(g))
//   dw = sum over rows of dout y                       db = sum over rows of dout
// in float32, rounded once. A block takes rows one after the other, a row in registers and the next one on its way, and keeps its share of dw and db.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

#include "../kernels.h"
#include "column_parts.cuh"

namespace {

constexpr int kMostThreads = 512, kMostWarps = kMostThreads / 32;  // a thread takes one vector of a row where that is enough
constexpr int kWarpsPerMultiprocessor = 28;                       // that many have room, with one vector a thread

struct Rows {
  const Eight *x, *weight, *dout, *addend;  // addend: nullptr for none
  const float *mean, *scale;                // [rows]; mean only of a layer norm
  Eight* dx;
  float* parts;  // [1 or 2, blocks, columns]
  int rows, vectors;
};

template <int VECTORS>
struct Row {
  Eight x[VECTORS], dout[VECTORS], addend[VECTORS];
  float mean, scale;

  template <bool LAYER>
  __device__ __forceinline__ void load(const Rows& from, int row) {
    const int64_t start = static_cast<int64_t>(row) * from.vectors;
    scale = from.scale[row];
    mean = LAYER ? from.mean[row] : 0;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      const int at = threadIdx.x + v * blockDim.x;
      if (at >= from.vectors) continue;
      x[v] = from.x[start + at];
      dout[v] = from.dout[start + at];
      if (from.addend != nullptr) addend[v] = from.addend[start + at];
    }
  }
};

// The sum over the block; `shared` must not be written again before the next but one call.
template <bool BOTH>
__device__ __forceinline__ float2 blockSum(float2 sum, float2* shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, distance);
    if (BOTH) sum.y += __shfl_xor_sync(~0u, sum.y, distance);
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = {0, 0};
  for (int warp = 0; warp < blockDim.x / 32; warp++) {
    const float2 part = shared[warp];
    sum.x += part.x;
    if (BOTH) sum.y += part.y;
  }
  return sum;
}

template <int VECTORS, bool LAYER>
__global__ void __launch_bounds__(kMostThreads, VECTORS == 1 ? 2 : 1) normBackward(const Rows args) {
  __shared__ float2 shared[2][kMostWarps];
  Eight weight[VECTORS];
  float dw[VECTORS][8] = {}, db[LAYER ? VECTORS : 1][8] = {};
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int at = threadIdx.x + v * blockDim.x;
    if (at < args.vectors) weight[v] = args.weight[at];
  }
  const float perColumn = 1.0f / static_cast<float>(8 * args.vectors);
  Row<VECTORS> next;
  next.template load<LAYER>(args, blockIdx.x);
  for (int row = blockIdx.x, turn = 0; row < args.rows; row += gridDim.x, turn ^= 1) {
    const Row<VECTORS> current = next;
    if (row + gridDim.x < args.rows) next.template load<LAYER>(args, row + gridDim.x);
    const auto normed = [&current](int v, int i) {
      const float x = wide(current.x[v].at[i]);
      return (LAYER ? x - current.mean : x) * current.scale;
    };
    float2 sum = {0, 0};  // of g y, and of g
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      if (threadIdx.x + v * blockDim.x >= args.vectors) continue;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float d = wide(current.dout[v].at[i]), y = normed(v, i), g = d * wide(weight[v].at[i]);
        sum.x += g * y;
        dw[v][i] += d * y;
        if (LAYER) sum.y += g, db[v][i] += d;
      }
    }
    sum = blockSum<LAYER>(sum, shared[turn]);
    const float along = sum.x * perColumn, level = sum.y * perColumn;
    const int64_t start = static_cast<int64_t>(row) * args.vectors;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      const int at = threadIdx.x + v * blockDim.x;
      if (at >= args.vectors) continue;
      Eight result;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float g = wide(current.dout[v].at[i]) * wide(weight[v].at[i]);
        const float own = current.scale * ((LAYER ? g - level : g) - normed(v, i) * along);
        result.at[i] = narrow(args.addend == nullptr ? own : wide(current.addend[v].at[i]) + own);
      }
      args.dx[start + at] = result;
    }
  }
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int at = threadIdx.x + v * blockDim.x;
    if (at >= args.vectors) continue;
    float* to = args.parts + (static_cast<int64_t>(blockIdx.x) * args.vectors + at) * 8;
    float* toBias = to + static_cast<int64_t>(gridDim.x) * args.vectors * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      to[i] = dw[v][i];
      if (LAYER) toBias[i] = db[v][i];
    }
  }
}

struct Shape {
  int threads, blocks;
};

Shape shapeOf(int rows, int vectors) {
  const int perThread = vectors <= kMostThreads ? 1 : 2, warps = ((vectors + perThread - 1) / perThread + 31) / 32;
  const int perMultiprocessor = std::max(1, kWarpsPerMultiprocessor / perThread / warps);
  return {32 * warps, std::min(rows, perMultiprocessor * multiprocessors())};
}

template <int VECTORS>
cudaError_t launch(const Rows& args, Shape shape, bool layer, cudaStream_t stream) {
  if (layer) normBackward<VECTORS, true><<<shape.blocks, shape.threads, 0, stream>>>(args);
  else normBackward<VECTORS, false><<<shape.blocks, shape.threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

// The launchers; their contracts are in native/kernels.h.
#define GROVE_LAUNCHER extern "C" __attribute__((visibility("default")))

GROVE_LAUNCHER int64_t grove_norm_backward_scratch(int rows, int columns) {
  return 2 * static_cast<int64_t>(shapeOf(rows, columns / 8).blocks) * columns;
}

GROVE_LAUNCHER int grove_norm_backward(const GroveNormBackward* a, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const int vectors = a->columns / 8;
  if (a->columns % 8 != 0 || vectors > 2 * kMostThreads || a->rows < 1) return static_cast<int>(cudaErrorInvalidValue);
  const bool layer = a->mean != nullptr;
  const Shape shape = shapeOf(a->rows, vectors);
  const auto vector = [](const void* p) { return static_cast<const Eight*>(p); };
  const Rows args = {vector(a->x), vector(a->weight), vector(a->dout), vector(a->addend), a->mean, a->scale, static_cast<Eight*>(a->dx), a->scratch,
                     a->rows, vectors};
  const cudaError_t status = vectors <= kMostThreads ? launch<1>(args, shape, layer, on) : launch<2>(args, shape, layer, on);
  if (status != cudaSuccess) return static_cast<int>(status);
  return static_cast<int>(launchAddParts(a->scratch, shape.blocks, a->columns, {static_cast<__nv_bfloat16*>(a->dWeight), a->addsWeight != 0},
                                         {static_cast<__nv_bfloat16*>(a->dBias), a->addsBias != 0}, on));
}
