// grove_gather_sums: gradients of q, k and v from the float32 sums of group_attention_backward.cu, q and k turned back where there is a table, rounded once.
// A thread takes 16 columns of the first half of a head and those half a head behind.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../kernels.h"
#include "launch.cuh"
#include "rotary_table.cuh"
#include "sum_layout.cuh"

namespace {

constexpr int kThreads = 256, kPieces = kHead / 32;

__device__ __forceinline__ void write(__nv_bfloat16* to, const Eight& low, const Eight& high) {
  *reinterpret_cast<Eight*>(to) = low;
  *reinterpret_cast<Eight*>(to + kHead / 2) = high;
}

template <class T>
__device__ __forceinline__ void finish(__nv_bfloat16* to, const float (&low)[8], const float (&high)[8], const T* cosines, const T* sines, int c) {
  Eight newLow, newHigh;
  if (cosines == nullptr) {
#pragma unroll
    for (int i = 0; i < 8; i++) newLow.at[i] = narrow(low[i]), newHigh.at[i] = narrow(high[i]);
  } else {
    turn<T>(low, high, cosines, sines, c, kHead, true, newLow, newHigh);
  }
  write(to, newLow, newHigh);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gatherSums(const GroveGatherSums a) {
  const int thread = blockIdx.x * kThreads + threadIdx.x, row = thread / kPieces, c = thread % kPieces * 16, head = blockIdx.y;
  if (row >= a.rows) return;
  const bool isQuery = head < a.heads, isValue = head >= a.heads + a.kvHeads, turns = a.cosines != nullptr && !isValue;
  const int own = isQuery ? head : (head - a.heads) % a.kvHeads;
  const float* from = (isQuery ? a.sumQ : isValue ? a.sumV : a.sumK) + static_cast<int64_t>(own) * a.rows * kHead;
  __nv_bfloat16* to = static_cast<__nv_bfloat16*>(isQuery ? a.dq : isValue ? a.dv : a.dk) + row * (isQuery ? a.strideQ : a.strideK) + own * kHead + c;
  const T* cosines = turns ? static_cast<const T*>(a.cosines) + static_cast<int64_t>(row) * kHead : nullptr;
  const T* sines = turns ? static_cast<const T*>(a.sines) + static_cast<int64_t>(row) * kHead : nullptr;
  waitForPrevious();
  float low[2][8], high[2][8];
  const float scale = isValue ? 1 : a.scale;
  readSums(from + placeOf(a.rows, row, c), scale, low[0], low[1]);
  readSums(from + placeOf(a.rows, row, c + kHead / 2), scale, high[0], high[1]);
#pragma unroll
  for (int i = 0; i < 2; i++) finish<T>(to + 8 * i, low[i], high[i], cosines, sines, c + 8 * i);
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_gather_sums(const GroveGatherSums* arguments, void* stream) {
  const GroveGatherSums& a = *arguments;
  const dim3 blocks((static_cast<unsigned>(a.rows) * kPieces + kThreads - 1) / kThreads, a.heads + 2 * a.kvHeads);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const auto kernel = a.tableIsBfloat16 ? gatherSums<__nv_bfloat16> : gatherSums<float>;
  return static_cast<int>(launchChained(kernel, blocks, dim3(kThreads), 0, on, a));
}
