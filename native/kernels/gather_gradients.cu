// grove_gather_gradients: gradients of q, k and v from the parts of a group attention (native/group_attention.h), into that of the product they were cut
// from. Rows of prompts have keys and values in two parts, rows of completions queries in two; they are added, and q and k turned back, in float32, and
// rounded once. A thread takes eight values of the first half of a head and those half a head behind.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../kernels.h"
#include "rotary_table.cuh"

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void addTo(float (&sums)[8], const void* part, int64_t at) {
  if (part == nullptr) return;
  const Eight values = *reinterpret_cast<const Eight*>(static_cast<const __nv_bfloat16*>(part) + at);
#pragma unroll
  for (int i = 0; i < 8; i++) sums[i] += wide(values.at[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gatherGradients(const GroveGatherGradients a) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int D = a.headDim, pieces = D / 16, all = a.heads + 2 * a.kvHeads;
  const int64_t place = thread / pieces, row = place / all;
  if (row >= a.rows) return;
  const int head = static_cast<int>(place % all), c = static_cast<int>(thread % pieces) * 8;
  const bool isQuery = head < a.heads, isValue = head >= a.heads + a.kvHeads, isPrompt = row < a.promptRows;
  const int64_t own = isPrompt ? row : row - a.promptRows;
  const void *first, *second;
  int64_t at;
  if (isQuery) {
    first = isPrompt ? a.promptQ : a.crossQ, second = isPrompt ? nullptr : a.ownQ;
    at = (own * a.heads + head) * D + c;
  } else {
    first = isPrompt ? (isValue ? a.promptV : a.promptK) : (isValue ? a.ownV : a.ownK);
    second = isPrompt ? (isValue ? a.crossV : a.crossK) : nullptr;
    at = (own * a.kvHeads + head - a.heads - (isValue ? a.kvHeads : 0)) * D + c;
  }
  float low[8] = {}, high[8] = {};
  addTo(low, first, at);
  addTo(high, first, at + D / 2);
  addTo(low, second, at);
  addTo(high, second, at + D / 2);
  Eight newLow, newHigh;
  if (isValue) {
#pragma unroll
    for (int i = 0; i < 8; i++) newLow.at[i] = narrow(low[i]), newHigh.at[i] = narrow(high[i]);
  } else {
    turn<T>(low, high, static_cast<const T*>(a.cosines) + row * D, static_cast<const T*>(a.sines) + row * D, c, D, true, newLow, newHigh);
  }
  __nv_bfloat16* to = static_cast<__nv_bfloat16*>(a.out) + place * D + c;
  *reinterpret_cast<Eight*>(to) = newLow;
  *reinterpret_cast<Eight*>(to + D / 2) = newHigh;
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_gather_gradients(const GroveGatherGradients* arguments, void* stream) {
  const GroveGatherGradients& a = *arguments;
  if (a.headDim % 16 != 0) return static_cast<int>(cudaErrorInvalidValue);
  const int64_t threads = static_cast<int64_t>(a.rows) * (a.heads + 2 * a.kvHeads) * (a.headDim / 16);
  const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (a.tableIsBfloat16) gatherGradients<__nv_bfloat16><<<blocks, kThreads, 0, on>>>(a);
  else gatherGradients<float><<<blocks, kThreads, 0, on>>>(a);
  return static_cast<int>(cudaGetLastError());
}
