// grove::token_logprobs: what the trainer needs of the logits of given tokens, without the softmax itself: logits [R, V], ids [R] int64 give
//   logprob [R]   log softmax(logits)[ids], nats
//   entropy [R]   of softmax(logits), nats
// in float32, for float64 logits in float64. No gradient passes through.
//
// On CUDA, float32 and bfloat16, it is the arithmetic of grove::sample_tokens (kernels/softmax_tiles.cuh): sampler and trainer get the same bits from
// the same logits, however many rows they have. Anywhere else, and under the name token_logprobs_composed everywhere, ATen operators.
#include <ATen/ATen.h>
#include <torch/library.h>

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

void checkArguments(const Tensor& logits, const Tensor& ids) {
  TORCH_CHECK(logits.dim() == 2 && ids.dim() == 1 && ids.size(0) == logits.size(0) && ids.scalar_type() == at::kLong,
              "token_logprobs: expected logits [R, V] and ids [R] int64, got ", logits.sizes(), " and ", ids.sizes(), " ", ids.scalar_type());
}

std::tuple<Tensor, Tensor> composed(const Tensor& logits, const Tensor& ids) {
  checkArguments(logits, ids);
  const auto wide = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor logSoftmax = at::log_softmax(logits, 1, wide);
  // a logit of minus infinity has the probability 0 and adds nothing, where 0 times infinity would be NaN; so far below others are 0 as well
  const Tensor entropy = at::exp(logSoftmax).mul_(logSoftmax.clamp_min(-1e4)).sum({1}).neg_();
  return {logSoftmax.gather(1, ids.unsqueeze(1)).squeeze(1), entropy};
}

#ifdef GROVE_CUDA
std::tuple<Tensor, Tensor> fused(const Tensor& logits, const Tensor& ids) {
  static const auto launch = reinterpret_cast<GroveTokenLogprobsLauncher>(kernelSymbol("grove_token_logprobs"));
  static const auto scratchFloats = reinterpret_cast<GroveSampleScratch>(kernelSymbol("grove_sample_scratch"));
  const bool fits = (logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16) && logits.is_contiguous() && ids.is_contiguous();
  if (launch == nullptr || scratchFloats == nullptr || !fits) return composed(logits, ids);
  checkArguments(logits, ids);
  TORCH_CHECK(ids.device() == logits.device(), "token_logprobs: logits and ids must be on one device");
  c10::cuda::CUDAGuard guard(logits.device());
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const auto floats = logits.options().dtype(at::kFloat);
  Tensor logprob = at::empty({rows}, floats), entropy = at::empty({rows}, floats);
  if (rows == 0) return {logprob, entropy};
  const int64_t scratchSize = scratchFloats(rows, vocab);
  if (scratchSize == 0) return composed(logits, ids);
  Tensor scratch = at::empty({scratchSize}, floats);
  const int status = launch(logits.const_data_ptr(), logits.scalar_type() == at::kBFloat16, ids.const_data_ptr<int64_t>(),
                            logprob.mutable_data_ptr<float>(), entropy.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>(),
                            static_cast<int>(rows), static_cast<int>(vocab), c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
  return {logprob, entropy};
}
#endif

constexpr const char* kSignature = "(Tensor logits, Tensor ids) -> (Tensor, Tensor)";

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def((std::string("token_logprobs") + kSignature).c_str());
  library.def((std::string("token_logprobs_composed") + kSignature).c_str());
}
TORCH_LIBRARY_IMPL(grove, CompositeExplicitAutograd, library) {
  library.impl("token_logprobs_composed", composed);
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("token_logprobs", composed);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("token_logprobs", fused);
}
#endif

}  // namespace grove
