// grove_rope_table: cosines and sines of T tokens over several position axes. Meaning: native/rope_table.cc.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"

namespace {

// One thread a token and frequency: F frequencies, tables [tokens, 2 F].
__global__ void __launch_bounds__(128) ropeTable(const int64_t* positions, const int64_t* axes, const float* frequencies, __nv_bfloat16* cosines,
                                                 __nv_bfloat16* sines, int tokens, int count) {
  letNextStart();
  waitForPrevious();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= static_cast<int64_t>(tokens) * count) return;
  const int token = static_cast<int>(at / count), f = static_cast<int>(at % count);
  const float angle = static_cast<float>(positions[axes[f] * tokens + token]) * frequencies[f];
  const __nv_bfloat16 cosine = __float2bfloat16_rn(cosf(angle)), sine = __float2bfloat16_rn(sinf(angle));
  const int64_t row = static_cast<int64_t>(token) * 2 * count;
  cosines[row + f] = cosines[row + count + f] = cosine;
  sines[row + f] = __hneg(sine);
  sines[row + count + f] = sine;
}

}  // namespace

// The launcher; its contract is GroveRopeTableLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_rope_table(const int64_t* positions, const int64_t* axes, const float* frequencies,
                                                                       void* cosines, void* sines, int tokens, int count, void* stream) {
  const int64_t threads = static_cast<int64_t>(tokens) * count;
  return static_cast<int>(launchChained(ropeTable, dim3(static_cast<unsigned>((threads + 127) / 128)), dim3(128), 0,
                                        static_cast<cudaStream_t>(stream), positions, axes, frequencies, static_cast<__nv_bfloat16*>(cosines),
                                        static_cast<__nv_bfloat16*>(sines), tokens, count));
}
