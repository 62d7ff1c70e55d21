// grove_moving_average: contract GroveMovingAverageLauncher in native/kernels.h, arithmetic native/moving_element.h. Bound by memory, six bytes an element:
// a thread takes eight neighbours, which it reads and writes in one access where they lie so.
#include <cuda_runtime.h>
#include <stdint.h>

#include "../kernels.h"
#include "../moving_element.h"

namespace {

using namespace grove;

constexpr int kThreads = 256, kRun = 8;  // elements of a thread, of two random quads

struct __align__(16) Run {
  uint16_t at[kRun];
};

// `first`: of the parameter's elements, a multiple of kRun.
__device__ __forceinline__ void move(Run& x, const Run& y, const GroveMovingAverage& a, int64_t first) {
#pragma unroll
  for (int q = 0; q < kRun; q += 4) {
    const adamw::Words words = adamw::randomWords(a.key0, a.key1, static_cast<uint64_t>(first + q) / 4, a.step);
#pragma unroll
    for (int i = 0; i < 4; i++) x.at[q + i] = moving::moved(x.at[q + i], y.at[q + i], a.share, words.at[i]);
  }
}

__global__ void __launch_bounds__(kThreads) movingAverage(const __grid_constant__ GroveMovingAverage a, bool aligned) {
  const int64_t run = a.begin / kRun + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, first = run * kRun, end = a.begin + a.count;
  if (first >= end) return;
  uint16_t* x = static_cast<uint16_t*>(a.x) + (first - a.begin);
  const uint16_t* y = static_cast<const uint16_t*>(a.y) + (first - a.begin);
  Run own, other;
  if (aligned && first + kRun <= end) {
    own = *reinterpret_cast<const Run*>(x), other = *reinterpret_cast<const Run*>(y);
    move(own, other, a, first);
    *reinterpret_cast<Run*>(x) = own;
    return;
  }
  const auto there = [&](int i) { return first + i >= a.begin && first + i < end; };
#pragma unroll
  for (int i = 0; i < kRun; i++) own.at[i] = there(i) ? x[i] : 0, other.at[i] = there(i) ? y[i] : 0;
  move(own, other, a, first);
#pragma unroll
  for (int i = 0; i < kRun; i++)
    if (there(i)) x[i] = own.at[i];
}

}  // namespace

// The launcher; its contract is GroveMovingAverageLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_moving_average(const GroveMovingAverage* a, void* stream) {
  if (a->begin < 0 || a->count < 0) return static_cast<int>(cudaErrorInvalidValue);
  if (a->count == 0) return 0;
  const int64_t runs = (a->begin + a->count - 1) / kRun - a->begin / kRun + 1;
  const bool aligned = a->begin % kRun == 0 && (reinterpret_cast<uintptr_t>(a->x) | reinterpret_cast<uintptr_t>(a->y)) % sizeof(Run) == 0;
  movingAverage<<<static_cast<unsigned>((runs + kThreads - 1) / kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a, aligned);
  return static_cast<int>(cudaGetLastError());
}
