// Queries, keys and values as a layer's product gives them, side by side and not rotated: qkv [T, H + 2 HK, D], cos and sin [T, 1, D].
//
// grove::rotate_cut             q [T, H, D] and k [T, HK, D], rotated, and v [T, HK, D]. `own_values`: a copy of v, which does not keep all of qkv alive
// grove::projected_attention    grove::group_attention of them; its arguments follow
//
// On CUDA in bfloat16 the backward takes the gradients, those of the attention's parts each, adds them up, turns them back and writes qkv's in one kernel
// (kernels/gather_gradients.cu); for projected_attention that is five copies, five sums, a rotation and two concatenations by operators. On Hopper
// there are no parts, and kernels/gather_sums.cu does this (group_attention_backward.h). Everywhere else
// these are the operators, with their autograd.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cuda_operand.h"
#include "group_attention.h"
#include "group_attention_backward.h"
#include "kernels.h"
#include "pointwise.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Heads {
  int64_t queries, keys;
};

struct Cut {
  Tensor q, k, v;
};

Cut rotateAndCut(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Heads heads, bool own_values) {
  const auto cut = at::split_with_sizes(qkv, {heads.queries + heads.keys, heads.keys}, 1);
  const auto rotated = at::split_with_sizes(rotate(cut[0], cos, sin), {heads.queries, heads.keys}, 1);
  return {rotated[0], rotated[1], own_values ? cut[1].contiguous() : cut[1]};
}

#ifdef GROVE_CUDA
GroveGatherGradientsLauncher gatherLauncher() {
  static const auto launch = reinterpret_cast<GroveGatherGradientsLauncher>(kernelSymbol("grove_gather_gradients"));
  return launch;
}

Tensor gatherGradients(const Shares& shares, const Tensor& cos, const Tensor& sin, int64_t T, int64_t promptRows, Heads heads) {
  const Tensor& like = shares.prompts.q;
  c10::cuda::CUDAGuard guard(like.device());
  Tensor out = at::empty({T, heads.queries + 2 * heads.keys, like.size(2)}, like.options());
  const auto data = [](const Tensor& x) -> const void* {
    if (!x.defined()) return nullptr;
    TORCH_CHECK(isPlain(x), "flash attention returned strided gradients");
    return x.const_data_ptr();
  };
  const auto &a = shares.prompts, &b = shares.crossing, &c = shares.completions;
  const GroveGatherGradients arguments = {data(a.q),
                                          data(a.k),
                                          data(a.v),
                                          data(b.q),
                                          data(b.k),
                                          data(b.v),
                                          data(c.q),
                                          data(c.k),
                                          data(c.v),
                                          cos.const_data_ptr(),
                                          sin.const_data_ptr(),
                                          out.mutable_data_ptr(),
                                          cos.scalar_type() == at::kBFloat16,
                                          static_cast<int32_t>(T),
                                          static_cast<int32_t>(promptRows),
                                          static_cast<int32_t>(heads.queries),
                                          static_cast<int32_t>(heads.keys),
                                          static_cast<int32_t>(like.size(2))};
  C10_CUDA_CHECK(static_cast<cudaError_t>(gatherLauncher()(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
  return out;
}

bool fits(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Heads heads) {
  return gatherLauncher() != nullptr && rotateFits(qkv.narrow(1, 0, heads.queries + heads.keys), cos, sin);
}

struct RotateCut : torch::autograd::Function<RotateCut> {
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& cos, const Tensor& sin, Heads heads, bool own_values) {
    ctx->save_for_backward({cos, sin});
    const auto [q, k, v] = rotateAndCut(qkv, cos, sin, heads, own_values);
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Shares shares{{grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()}, {}, {}};
    const int64_t T = grads[0].size(0);
    return {gatherGradients(shares, s[0], s[1], T, T, {grads[0].size(1), grads[1].size(1)}), {}, {}, {}, {}};
  }
};

struct ProjectedAttention : torch::autograd::Function<ProjectedAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& cos, const Tensor& sin, Heads heads, bool own_values, const Groups& g) {
    const auto [q, k, v] = rotateAndCut(qkv, cos, sin, heads, own_values);
    checkGroups(q, k, v, g);
    const auto a = attendGroups(q, k, v, g);
    ctx->save_for_backward({q, k, v, cos, sin, g.cu_prompt, g.cu_group, g.cu_completion, a.out, a.prompt_lse, a.prompt_seed, a.prompt_unused, a.lse,
                            a.cross_seed, a.cross_unused, a.own_seed, a.own_unused});
    ctx->saved_data["ints"] = std::vector<int64_t>{g.prompt_rows, g.max_prompt, g.max_group, g.max_completion};
    ctx->saved_data["scale"] = g.scale;
    return a.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const auto n = ctx->saved_data["ints"].toIntVector();
    const Groups groups{s[5], s[6], s[7], {}, {}, n[0], n[1], n[2], n[3], 0, ctx->saved_data["scale"].toDouble()};
    const Attended attended{s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15], s[16]};
    const Tensor &q = s[0], &k = s[1], &v = s[2], dout = grads[0].contiguous();
    const int64_t H = q.size(1), HK = k.size(1);
    if (const auto sums = gradientSums(dout, q, k, v, attended, groups)) {
      const Tensor dqkv = at::empty({q.size(0), H + 2 * HK, q.size(2)}, q.options());
      writeSums(*sums, s[3], s[4], dqkv.narrow(1, 0, H), dqkv.narrow(1, H, HK), dqkv.narrow(1, H + HK, HK));
      return {dqkv, {}, {}, {}, {}, {}};
    }
    const auto shares = gradientShares(dout, q, k, v, attended, groups);
    return {gatherGradients(shares, s[3], s[4], q.size(0), n[0], {H, HK}), {}, {}, {}, {}, {}};
  }
};
#endif

Heads headsOf(const Tensor& qkv, int64_t kv_heads) {
  TORCH_CHECK(qkv.dim() == 3 && kv_heads > 0 && qkv.size(1) > 2 * kv_heads, "expected qkv [T, H + 2 * ", kv_heads, ", D], got ", qkv.sizes());
  return {qkv.size(1) - 2 * kv_heads, kv_heads};
}

std::tuple<Tensor, Tensor, Tensor> rotate_cut(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t kv_heads, bool own_values) {
  const Heads heads = headsOf(qkv, kv_heads);
#ifdef GROVE_CUDA
  if (fits(qkv, cos, sin, heads)) {
    const auto parts = RotateCut::apply(qkv, cos, sin, heads, own_values);
    return {parts[0], parts[1], parts[2]};
  }
#endif
  const auto [q, k, v] = rotateAndCut(qkv, cos, sin, heads, own_values);
  return {q, k, v};
}

Tensor projected_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t kv_heads, bool own_values, const Tensor& cu_prompt,
                           const Tensor& cu_group, const Tensor& cu_completion, const Tensor& chunk_starts, const Tensor& chunk_lengths,
                           int64_t prompt_rows, int64_t max_prompt, int64_t max_group, int64_t max_completion, int64_t max_chunk, double scale) {
  const Heads heads = headsOf(qkv, kv_heads);
#ifdef GROVE_CUDA
  if (fits(qkv, cos, sin, heads)) {
    return ProjectedAttention::apply(qkv, cos, sin, heads, own_values,
                                     Groups{cu_prompt, cu_group, cu_completion, chunk_starts, chunk_lengths, prompt_rows, max_prompt, max_group,
                                            max_completion, max_chunk, scale});
  }
#endif
  const auto [q, k, v] = rotateAndCut(qkv, cos, sin, heads, own_values);
  return groupAttention(q, k, v,
                        Groups{cu_prompt, cu_group, cu_completion, chunk_starts, chunk_lengths, prompt_rows, max_prompt, max_group, max_completion,
                               max_chunk, scale});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above, or from the operators
  m.def("rotate_cut(Tensor qkv, Tensor cos, Tensor sin, int kv_heads, bool own_values) -> (Tensor, Tensor, Tensor)", rotate_cut);
  m.def(
      "projected_attention(Tensor qkv, Tensor cos, Tensor sin, int kv_heads, bool own_values, Tensor cu_prompt, Tensor cu_group, "
      "Tensor cu_completion, Tensor chunk_starts, Tensor chunk_lengths, int prompt_rows, int max_prompt, int max_group, int max_completion, "
      "int max_chunk, float scale) -> Tensor",
      projected_attention);
}

}  // namespace grove
