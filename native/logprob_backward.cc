// grove::logprob_backward: d(sum of d * logprob) / d(logits), given logits [R, V], targets [R] int64, logSum [R] (log of the sum of exp(logits)) and d [R],
// both in the softmax's type. With p = exp(logits - logSum): (onehot(target) - p) d, in the logits' type and, on CUDA in bfloat16, in
// their memory. No gradient.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cuda_operand.h"
#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;

Tensor logprob_backward(const Tensor& logits, const Tensor& targets, const Tensor& logSum, const Tensor& d) {
  TORCH_CHECK(logits.dim() == 2 && targets.dim() == 1 && targets.size(0) == logits.size(0) && targets.scalar_type() == at::kLong &&
                  logSum.sizes() == targets.sizes() && d.sizes() == targets.sizes() && logSum.scalar_type() == d.scalar_type(),
              "logprob_backward: expected logits [R, V], targets [R] int64, logSum and d [R] of one type, got ", logits.sizes(), ", ",
              targets.sizes(), ", ", logSum.sizes(), ", ", d.sizes());
#ifdef GROVE_CUDA
  static const auto launch = reinterpret_cast<GroveLogprobBackwardLauncher>(kernelSymbol("grove_logprob_backward"));
  constexpr int64_t kMostRows = 65535;
  if (launch != nullptr && isPlain(logits) && logits.numel() > 0 && logits.size(1) % 8 == 0 && logits.size(0) <= kMostRows &&
      targets.is_contiguous() && logSum.is_contiguous() && d.is_contiguous() && d.scalar_type() == at::kFloat && targets.is_cuda() && d.is_cuda() &&
      logSum.is_cuda()) {
    c10::cuda::CUDAGuard guard(logits.device());
    C10_CUDA_CHECK(static_cast<cudaError_t>(launch(logits.mutable_data_ptr(), targets.const_data_ptr<int64_t>(), logSum.const_data_ptr<float>(),
                                                   d.const_data_ptr<float>(), static_cast<int>(logits.size(0)), static_cast<int>(logits.size(1)),
                                                   c10::cuda::getCurrentCUDAStream().stream())));
    return logits;
  }
#endif
  Tensor result = at::sub(logits, logSum.unsqueeze(1)).exp_().mul_(d.neg().unsqueeze(1));
  result.scatter_add_(1, targets.unsqueeze(1), d.unsqueeze(1));
  return result.to(logits.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {
  m.def("logprob_backward(Tensor(a!) logits, Tensor targets, Tensor logSum, Tensor d) -> Tensor", logprob_backward);
}

}  // namespace grove
