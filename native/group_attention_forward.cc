// The forward of grove::group_attention as one kernel of our own (kernels/group_attention_forward.cu): bfloat16, heads of 128, Hopper. Its bits are those
// of the calls of flash attention and the sum of their parts that it stands for (test/model/group-attention.gpu.test.ts).
#include <ATen/ATen.h>

#include "group_attention.h"
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

// Whether the copy engine can read rows of x [rows, heads, dim]: heads side by side, rows and the first value at multiples of 16 bytes.
bool hasPlainRows(const Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.stride(2) == 1 && x.stride(1) == x.size(2) && x.stride(0) % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

}  // namespace

std::optional<Attended> attendGroupsInOneKernel(const Tensor& q, const Tensor& k, const Tensor& v, const Groups& g) {
  static const auto launch = reinterpret_cast<GroveGroupAttentionForwardLauncher>(kernelSymbol("grove_group_attention_forward"));
  static const auto fits = reinterpret_cast<GroveGroupAttentionForwardFits>(kernelSymbol("grove_group_attention_forward_fits"));
  static const auto scratchBytes = reinterpret_cast<GroveGroupAttentionForwardScratch>(kernelSymbol("grove_group_attention_forward_scratch"));
  if (launch == nullptr || !hasPlainRows(q) || !hasPlainRows(k) || !hasPlainRows(v)) return std::nullopt;
  c10::cuda::CUDAGuard guard(q.device());
  if (fits(static_cast<int>(q.size(2))) == 0) return std::nullopt;
  const int64_t T = q.size(0), H = q.size(1), P = g.prompt_rows, C = T - P, chunks = g.chunk_lengths.size(0);
  Attended a;
  a.out = at::empty(q.sizes(), q.options());
  a.prompt_lse = at::empty({H, P}, q.options().dtype(at::kFloat));
  if (C > 0) a.lse = at::empty({H, C}, a.prompt_lse.options());
  Tensor scratch = at::empty({scratchBytes(static_cast<int>(chunks))}, q.options().dtype(at::kByte));
  const auto count = [](int64_t n) { return static_cast<int32_t>(n); };
  const GroveGroupAttentionForward arguments = {q.const_data_ptr(),
                                                k.const_data_ptr(),
                                                v.const_data_ptr(),
                                                g.cu_prompt.const_data_ptr<int>(),
                                                g.cu_group.const_data_ptr<int>(),
                                                g.cu_completion.const_data_ptr<int>(),
                                                g.chunk_starts.const_data_ptr<int>(),
                                                g.chunk_lengths.const_data_ptr<int>(),
                                                a.out.mutable_data_ptr(),
                                                a.prompt_lse.mutable_data_ptr<float>(),
                                                C > 0 ? a.lse.mutable_data_ptr<float>() : nullptr,
                                                scratch.mutable_data_ptr(),
                                                q.stride(0),
                                                k.stride(0),
                                                v.stride(0),
                                                count(T),
                                                count(P),
                                                count(g.cu_prompt.numel() - 1),
                                                count(g.cu_completion.numel() - 1),
                                                count(chunks),
                                                count(H),
                                                count(k.size(1)),
                                                static_cast<float>(g.scale)};
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
  // flash attention's backward asks for the state of its dropout, which there is none of
  a.prompt_seed = a.prompt_unused = at::empty({2}, q.options().dtype(at::kUInt64));
  if (C > 0) a.cross_seed = a.cross_unused = a.own_seed = a.own_unused = a.prompt_seed;
  return a;
}
#else
std::optional<Attended> attendGroupsInOneKernel(const Tensor&, const Tensor&, const Tensor&, const Groups&) { return std::nullopt; }
#endif

}  // namespace grove
