#include "group_attention_backward.h"

#include <ATen/ATen.h>

#include "cuda_operand.h"
#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {

using at::Tensor;

#ifdef GROVE_CUDA
namespace {

// Rows of heads of a bfloat16 tensor that the copy engine can read: packed heads, rows 16 bytes apart.
bool hasPackedHeads(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.stride(2) == 1 && x.stride(1) == x.size(2) && x.stride(0) % 8 == 0 && isAligned(x);
}

bool fits(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out) {
  static const auto onDevice = reinterpret_cast<GroveGroupBackwardFits>(kernelSymbol("grove_group_attention_backward_fits"));
  return onDevice != nullptr && !at::globalContext().deterministicAlgorithms() && hasPackedHeads(q) && hasPackedHeads(k) && hasPackedHeads(v) &&
         isPlain(dout) && isPlain(out) && q.size(0) * q.size(1) < (int64_t{1} << 31) && onDevice(static_cast<int>(q.size(2))) != 0;
}

const float* logSums(const Tensor& lse, int64_t heads, int64_t rows) {
  TORCH_CHECK(lse.scalar_type() == at::kFloat && lse.is_contiguous() && lse.numel() == heads * rows, "group attention: expected log-sum-exps float32 [",
              heads, ", ", rows, "], contiguous, got ", lse.scalar_type(), " ", lse.sizes());
  return lse.const_data_ptr<float>();
}

}  // namespace

std::optional<GradientSums> gradientSums(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Attended& attended,
                                         const Groups& groups) {
  if (!q.is_cuda()) return std::nullopt;
  c10::cuda::CUDAGuard guard(q.device());
  if (!fits(dout, q, k, v, attended.out)) return std::nullopt;
  static const auto launch = reinterpret_cast<GroveGroupBackwardLauncher>(kernelSymbol("grove_group_attention_backward"));
  const int64_t T = q.size(0), H = q.size(1), HK = k.size(1), D = q.size(2), C = T - groups.prompt_rows;
  const auto options = q.options().dtype(at::kFloat);
  const Tensor stats = at::empty({H, T, 2}, options);
  GradientSums sums{at::empty({H, T, D}, options), at::empty({HK, T, D}, options), at::empty({HK, T, D}, options), groups.scale};
  const GroveGroupBackward arguments = {dout.const_data_ptr(),
                                        attended.out.const_data_ptr(),
                                        q.const_data_ptr(),
                                        k.const_data_ptr(),
                                        v.const_data_ptr(),
                                        logSums(attended.prompt_lse, H, groups.prompt_rows),
                                        C > 0 ? logSums(attended.lse, H, C) : nullptr,
                                        groups.cu_prompt.const_data_ptr<int32_t>(),
                                        groups.cu_group.const_data_ptr<int32_t>(),
                                        groups.cu_completion.const_data_ptr<int32_t>(),
                                        stats.mutable_data_ptr(),
                                        sums.q.mutable_data_ptr<float>(),
                                        sums.k.mutable_data_ptr<float>(),
                                        sums.v.mutable_data_ptr<float>(),
                                        q.stride(0),
                                        k.stride(0),
                                        v.stride(0),
                                        static_cast<int32_t>(T),
                                        static_cast<int32_t>(groups.prompt_rows),
                                        static_cast<int32_t>(groups.cu_prompt.numel() - 1),
                                        static_cast<int32_t>(C > 0 ? groups.cu_completion.numel() - 1 : 0),
                                        static_cast<int32_t>(groups.max_prompt),
                                        static_cast<int32_t>(groups.max_completion),
                                        static_cast<int32_t>(H),
                                        static_cast<int32_t>(HK),
                                        static_cast<float>(groups.scale)};
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
  return sums;
}

void writeSums(const GradientSums& sums, const Tensor& cos, const Tensor& sin, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  static const auto launch = reinterpret_cast<GroveGatherSumsLauncher>(kernelSymbol("grove_gather_sums"));
  TORCH_CHECK(launch != nullptr && hasPackedHeads(dq) && hasPackedHeads(dk) && hasPackedHeads(dv) && dk.stride(0) == dv.stride(0),
              "group attention: gradients expected in bfloat16 with packed heads");
  c10::cuda::CUDAGuard guard(dq.device());
  const GroveGatherSums arguments = {sums.q.const_data_ptr<float>(),
                                     sums.k.const_data_ptr<float>(),
                                     sums.v.const_data_ptr<float>(),
                                     cos.defined() ? cos.const_data_ptr() : nullptr,
                                     sin.defined() ? sin.const_data_ptr() : nullptr,
                                     dq.mutable_data_ptr(),
                                     dk.mutable_data_ptr(),
                                     dv.mutable_data_ptr(),
                                     dq.stride(0),
                                     dk.stride(0),
                                     cos.defined() && cos.scalar_type() == at::kBFloat16,
                                     static_cast<int32_t>(dq.size(0)),
                                     static_cast<int32_t>(dq.size(1)),
                                     static_cast<int32_t>(dk.size(1)),
                                     static_cast<float>(sums.scale)};
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
}
#else
std::optional<GradientSums> gradientSums(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Attended&, const Groups&) { return std::nullopt; }
void writeSums(const GradientSums&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) {}
#endif

}  // namespace grove
