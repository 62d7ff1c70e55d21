// grove_logprob_backward: the gradient of log softmax(logits)[target] with respect to the logits, in their place: with p = exp(logit - logSum),
// (onehot(target) - p) d in float32, rounded once. Bound by reading and writing the logits.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "bfloat16_vector.cuh"

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    logprobBackward(Eight* logits, const int64_t* targets, const float* logSums, const float* dLogprobs, int vectors) {
  const int at = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  if (at >= vectors) return;
  Eight* place = logits + static_cast<int64_t>(row) * vectors + at;
  const Eight values = *place;
  const float logSum = logSums[row], d = dLogprobs[row];
  const int target = static_cast<int>(targets[row]) - 8 * at;
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float share = -d * __expf(wide(values.at[i]) - logSum);
    result.at[i] = narrow(i == target ? share + d : share);
  }
  *place = result;
}

}  // namespace

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_logprob_backward(void* logits, const int64_t* targets, const float* logSums,
                                                                             const float* dLogprobs, int rows, int vocab, void* stream) {
  if (vocab % 8 != 0 || rows > 65535) return static_cast<int>(cudaErrorInvalidValue);
  const dim3 grid((vocab / 8 + kThreads - 1) / kThreads, rows);
  logprobBackward<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<Eight*>(logits), targets, logSums, dLogprobs, vocab / 8);
  return static_cast<int>(cudaGetLastError());
}
