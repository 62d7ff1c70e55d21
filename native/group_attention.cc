// grove::group_attention: attention of packed groups, each prompt computed once for all of its completions.
//
// Rows are packed as [prompt 1 | ... | prompt N | completions of 1 | ... | completions of N] (src/model/packed.ts). A prompt
// attends to itself causally; a completion attends to all of its prompt and to itself causally. Three varlen attention parts:
//   a. prompts, causal              b. completions -> their prompt, not causal              c. completions, causal
// b and c are partial softmaxes over disjoint keys of the same queries. With LSE their log-sum-exps,
//   lse = log(exp(lse_b) + exp(lse_c)),   out = exp(lse_b - lse) out_b + exp(lse_c - lse) out_c
// is the softmax over both. The backward of a part given the merged out and lse is its exact share of the whole gradient, since
// P = exp(S - lse) and rowsum(dout * out) are then those of the whole; the shares of dq, dk and dv add up.
//
// On CUDA the parts are aten::_flash_attention_forward/backward (bf16, f16), and the forward of b is as many parts as the prompts have chunks
// (src/model/prompt-chunks.ts), since decode takes a prompt in these chunks and its bits are to be the same. On Hopper one kernel of our own does all of
// the forward, to the same bits (group_attention_forward.cc), and another one all of the backward (group_attention_backward.h). On the CPU each
// segment is one call of aten::_scaled_dot_product_flash_attention_for_cpu (f32, f64, bf16, f16). All take grouped-query heads without copying keys.

#include "group_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "group_attention_backward.h"
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
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One varlen attention part. Query rows are q_start + [cu_q[i], cu_q[i+1]), key rows k_start + [cu_k[i], cu_k[i+1]), or the first
// used_k[i] of them where that is defined.
struct Part {
  Tensor cu_q, cu_k;  // int32 [segments + 1], on the device of q
  int64_t max_q, max_k;
  bool causal;
  Tensor used_k;  // int32 [segments]; forward on CUDA only
};

// LSE is kept as (heads, rows), the layout of the CUDA op. `seed` and `unused` are opaque outputs its backward wants back.
struct PartResult {
  Tensor out, lse, seed, unused;
};

// [rows, heads, dim] as [kv heads, queries per kv head, rows, dim], without a copy. Keys repeat by a stride of zero.
Tensor query_view(const Tensor& x, int64_t kv_heads) {
  return x.view({x.size(0), kv_heads, x.size(1) / kv_heads, x.size(2)}).permute({1, 2, 0, 3});
}

Tensor key_view(const Tensor& x, int64_t repeat) {
  return x.unsqueeze(2).expand({x.size(0), x.size(1), repeat, x.size(2)}).permute({1, 2, 0, 3});
}

// [kv heads, queries per kv head, rows, dim] back to [rows, heads, dim].
Tensor to_rows(const Tensor& x) {
  return x.permute({2, 0, 1, 3}).reshape({x.size(2), x.size(0) * x.size(1), x.size(3)});
}

template <class Body>
void each_segment(const Part& part, Body body) {
  const auto* q = part.cu_q.const_data_ptr<int32_t>();
  const auto* k = part.cu_k.const_data_ptr<int32_t>();
  for (int64_t i = 0; i + 1 < part.cu_q.numel(); ++i) {
    if (q[i + 1] > q[i]) body(q[i], q[i + 1] - q[i], k[i], k[i + 1] - k[i]);
  }
}

PartResult part_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Part& part, double scale) {
  if (q.is_cuda()) {
    // max_q only sizes the grid; with 1 a kernel of other arithmetic would be taken
    const auto used = part.used_k.defined() ? std::optional<Tensor>(part.used_k) : std::nullopt;
    auto r = at::_flash_attention_forward(q, k, v, part.cu_q, part.cu_k, std::max<int64_t>(part.max_q, 2), part.max_k, 0.0,
                                          part.causal, false, scale, std::nullopt, std::nullopt, used);
    return {std::get<0>(r), std::get<1>(r), std::get<2>(r), std::get<3>(r)};
  }
  const int64_t kv_heads = k.size(1), repeat = q.size(1) / kv_heads;
  const auto lse_type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
  Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(lse_type));
  each_segment(part, [&](int64_t q0, int64_t nq, int64_t k0, int64_t nk) {
    auto [o, l] = at::_scaled_dot_product_flash_attention_for_cpu(
        query_view(q.narrow(0, q0, nq), kv_heads), key_view(k.narrow(0, k0, nk), repeat),
        key_view(v.narrow(0, k0, nk), repeat), 0.0, part.causal, {}, scale);
    out.narrow(0, q0, nq).copy_(to_rows(o));
    lse.narrow(1, q0, nq).copy_(l.reshape({q.size(1), nq}));
  });
  return {out, lse, Tensor(), Tensor()};
}

Share flash_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const PartResult& whole, const Part& part, double scale) {
  auto [gq, gk, gv] = at::_flash_attention_backward(dout, q, k, v, whole.out, whole.lse, part.cu_q, part.cu_k, part.max_q, part.max_k, 0.0,
                                                    part.causal, whole.seed, whole.unused, scale);
  return {gq, gk, gv};
}

// Adds the part's share to dq, dk, dv (rows of the same ranges as q, k, v) on the CPU. out and lse are those of the whole softmax.
void add_share(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const PartResult& whole, const Part& part, double scale,
               Tensor dq, Tensor dk, Tensor dv, bool accumulate_q) {
  const int64_t kv_heads = k.size(1), repeat = q.size(1) / kv_heads;
  each_segment(part, [&](int64_t q0, int64_t nq, int64_t k0, int64_t nk) {
    const Tensor lse = whole.lse.narrow(1, q0, nq).reshape({kv_heads, repeat, nq});
    auto [gq, gk, gv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        query_view(dout.narrow(0, q0, nq), kv_heads), query_view(q.narrow(0, q0, nq), kv_heads),
        key_view(k.narrow(0, k0, nk), repeat), key_view(v.narrow(0, k0, nk), repeat),
        query_view(whole.out.narrow(0, q0, nq), kv_heads), lse, 0.0, part.causal, {}, scale);
    Tensor rows = dq.narrow(0, q0, nq);
    if (accumulate_q) rows.add_(to_rows(gq));
    else rows.copy_(to_rows(gq));
    dk.narrow(0, k0, nk).add_(gk.sum(1).transpose(0, 1));  // [kv heads, repeat, rows, dim] -> [rows, kv heads, dim]
    dv.narrow(0, k0, nk).add_(gv.sum(1).transpose(0, 1));
  });
}

struct Parts {
  int64_t prompt_rows, completion_rows;
  Part prompts, crossing, completions;
};

Parts make_parts(const Tensor& q, const Groups& g) {
  return {g.prompt_rows,
          q.size(0) - g.prompt_rows,
          {g.cu_prompt, g.cu_prompt, g.max_prompt, g.max_prompt, true, {}},
          {g.cu_group, g.cu_prompt, g.max_group, g.max_prompt, false, {}},
          {g.cu_completion, g.cu_completion, g.max_completion, g.max_completion, true, {}}};
}

// The softmax over all parts, the chunks and then the completions themselves; writes its values to `out` and returns its log-sum-exp. The plain
// definition of grove_merge_parts.
Tensor merge_composed(const std::vector<PartResult>& parts, const Tensor& cu_group, const Tensor& lengths, Tensor out) {
  std::vector<Tensor> lses;
  for (const auto& part : parts) lses.push_back(part.lse);
  Tensor lse = at::stack(lses);  // [parts, heads, rows]
  if (parts.size() > 2) {
    // an optional, or the overload that repeats every element that often is taken
    const auto group_of_row = at::repeat_interleave(cu_group.diff(), std::optional<int64_t>(out.size(0)));
    const auto absent = lengths.index_select(1, group_of_row).eq(0).unsqueeze(1);  // [chunks, 1, rows]
    lse.narrow(0, 0, lengths.size(0)).masked_fill_(absent, -INFINITY);
  }
  const Tensor weights = at::softmax(lse, 0).transpose(1, 2).unsqueeze(-1);  // [parts, rows, heads, 1]
  // float32 weights times bf16 outputs promote, so the sum is rounded once, when it is written to its rows
  Tensor sum = parts[0].out * weights[0];
  for (size_t p = 1; p < parts.size(); p++) sum.addcmul_(parts[p].out.to(sum.scalar_type()), weights[p]);
  out.copy_(sum);
  return at::logsumexp(lse, 0);
}

Tensor merge(const std::vector<PartResult>& parts, const Tensor& cu_group, const Tensor& lengths, Tensor out) {
#ifdef GROVE_CUDA
  const auto launch = reinterpret_cast<GroveMergePartsLauncher>(kernelSymbol("grove_merge_parts"));
  if (launch != nullptr && out.is_cuda() && out.scalar_type() == at::kBFloat16) {
    c10::cuda::CUDAGuard guard(out.device());
    std::vector<const void*> outs;
    std::vector<const float*> lses;
    for (const auto& part : parts) {
      TORCH_CHECK(part.out.is_contiguous() && part.lse.is_contiguous(), "flash attention returned strided results");
      outs.push_back(part.out.const_data_ptr());
      lses.push_back(part.lse.const_data_ptr<float>());
    }
    const int64_t rows = out.size(0), heads = out.size(1);
    Tensor lse = at::empty({heads, rows}, out.options().dtype(at::kFloat));
    const int status = launch(outs.data(), lses.data(), static_cast<int>(parts.size()), cu_group.const_data_ptr<int>(),
                              lengths.const_data_ptr<int>(), static_cast<int>(lengths.size(1)), out.mutable_data_ptr(),
                              lse.mutable_data_ptr<float>(), static_cast<int>(rows), static_cast<int>(heads),
                              static_cast<int>(out.size(2)), c10::cuda::getCurrentCUDAStream().stream());
    C10_CUDA_CHECK(static_cast<cudaError_t>(status));
    return lse;
  }
#endif
  return merge_composed(parts, cu_group, lengths, out);
}

struct GroupAttention : torch::autograd::Function<GroupAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Groups& g) {
    const auto a = attendGroups(q, k, v, g);
    ctx->save_for_backward({q, k, v, g.cu_prompt, g.cu_group, g.cu_completion, a.out, a.prompt_lse, a.prompt_seed, a.prompt_unused, a.lse,
                            a.cross_seed, a.cross_unused, a.own_seed, a.own_unused});
    ctx->saved_data["ints"] = std::vector<int64_t>{g.prompt_rows, g.max_prompt, g.max_group, g.max_completion};
    ctx->saved_data["scale"] = g.scale;
    return a.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const auto n = ctx->saved_data["ints"].toIntVector();
    const Groups groups{s[3], s[4], s[5], {}, {}, n[0], n[1], n[2], n[3], 0, ctx->saved_data["scale"].toDouble()};
    const Attended attended{s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14]};
    const Tensor &q = s[0], &k = s[1], &v = s[2], &out = s[6], dout = grads[0].contiguous();
    const auto parts = make_parts(q, groups);
    const int64_t P = parts.prompt_rows, C = parts.completion_rows;
    const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
    const auto upper = [P](const Tensor& x) { return x.narrow(0, 0, P); };
    const auto lower = [P, C](const Tensor& x) { return x.narrow(0, P, C); };
    if (const auto sums = gradientSums(dout, q, k, v, attended, groups)) {
      writeSums(*sums, {}, {}, dq, dk, dv);
      return {dq, dk, dv, {}};
    }
    if (q.is_cuda()) {
      const auto shares = gradientShares(dout, q, k, v, attended, groups);
      upper(dq).copy_(shares.prompts.q);
      upper(dk).copy_(shares.prompts.k);
      upper(dv).copy_(shares.prompts.v);
      if (C > 0) {
        lower(dq).copy_(shares.crossing.q);
        upper(dk).add_(shares.crossing.k);
        upper(dv).add_(shares.crossing.v);
        lower(dq).add_(shares.completions.q);
        lower(dk).copy_(shares.completions.k);
        lower(dv).copy_(shares.completions.v);
      }
      return {dq, dk, dv, {}};
    }
    dk.zero_(), dv.zero_();
    add_share(upper(dout), upper(q), upper(k), upper(v), {upper(out), attended.prompt_lse, {}, {}}, parts.prompts, groups.scale, upper(dq), upper(dk),
              upper(dv), false);
    if (C > 0) {
      const PartResult whole{lower(out), attended.lse, {}, {}};
      add_share(lower(dout), lower(q), upper(k), upper(v), whole, parts.crossing, groups.scale, lower(dq), upper(dk), upper(dv), false);
      add_share(lower(dout), lower(q), lower(k), lower(v), whole, parts.completions, groups.scale, lower(dq), lower(dk), lower(dv), true);
    }
    return {dq, dk, dv, {}};
  }
};

// q [T, H, D], k and v [T, HK, D], H a multiple of HK, last dimension contiguous. cu_* int32 on q's device, each starting at 0:
// cu_prompt [N + 1] prompt rows, cu_group [N + 1] completion rows per group, cu_completion [completions + 1]; both of the latter
// count from the first completion row. chunk_starts [chunks, N + 1] and chunk_lengths [chunks, N], likewise int32 on q's device, cut the
// prompts for the completions: chunk i of prompt n has the chunk_lengths[i, n] keys from row chunk_starts[i, n] on, max_chunk of them at
// most; its last column is prompt_rows. Returns [T, H, D].
Tensor group_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_prompt, const Tensor& cu_group,
                       const Tensor& cu_completion, const Tensor& chunk_starts, const Tensor& chunk_lengths, int64_t prompt_rows,
                       int64_t max_prompt, int64_t max_group, int64_t max_completion, int64_t max_chunk, double scale) {
  return groupAttention(q, k, v,
                        Groups{cu_prompt, cu_group, cu_completion, chunk_starts, chunk_lengths, prompt_rows, max_prompt, max_group, max_completion,
                               max_chunk, scale});
}

}  // namespace

Tensor groupAttention(const Tensor& q, const Tensor& k, const Tensor& v, const Groups& groups) {
  checkGroups(q, k, v, groups);
  return GroupAttention::apply(q, k, v, groups);
}

void checkGroups(const Tensor& q, const Tensor& k, const Tensor& v, const Groups& g) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.sizes() == k.sizes(), "expected q [T, H, D] and k, v [T, HK, D], got ",
              q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  TORCH_CHECK(q.size(0) == k.size(0) && q.size(2) == k.size(2) && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
              "rows and head sizes of q and k must agree and heads be a multiple of kv heads, got ", q.sizes(), ", ", k.sizes());
  TORCH_CHECK(g.prompt_rows > 0 && g.prompt_rows <= q.size(0), "prompt_rows ", g.prompt_rows, " out of range for ", q.size(0), " rows");
  TORCH_CHECK(g.cu_prompt.scalar_type() == at::kInt && g.cu_group.scalar_type() == at::kInt && g.cu_completion.scalar_type() == at::kInt,
              "cu_prompt, cu_group and cu_completion must be int32");
  TORCH_CHECK(g.cu_prompt.numel() == g.cu_group.numel(), "cu_prompt and cu_group must have one entry per group and one more");
  TORCH_CHECK(g.cu_prompt.device() == q.device() && g.cu_group.device() == q.device() && g.cu_completion.device() == q.device(),
              "cu_prompt, cu_group and cu_completion must be on the device of q");
  const int64_t count = g.cu_prompt.numel() - 1;
  TORCH_CHECK(g.chunk_starts.dim() == 2 && g.chunk_lengths.dim() == 2 && g.chunk_starts.size(0) == g.chunk_lengths.size(0) &&
                  g.chunk_starts.size(0) >= 1 && g.chunk_starts.size(0) <= kGroveMaxPromptChunks && g.chunk_starts.size(1) == count + 1 &&
                  g.chunk_lengths.size(1) == count,
              "expected chunk_starts [1 to ", kGroveMaxPromptChunks, ", ", count + 1, "] and chunk_lengths [.., ", count, "], got ",
              g.chunk_starts.sizes(), ", ", g.chunk_lengths.sizes());
  for (const Tensor* chunk : {&g.chunk_starts, &g.chunk_lengths}) {
    TORCH_CHECK(chunk->scalar_type() == at::kInt && chunk->device() == q.device() && chunk->is_contiguous(),
                "chunk_starts and chunk_lengths must be int32, contiguous and on the device of q");
  }
}

Attended attendGroups(const Tensor& q, const Tensor& k, const Tensor& v, const Groups& groups) {
  if (auto attended = attendGroupsInOneKernel(q, k, v, groups)) return *std::move(attended);
  const auto parts = make_parts(q, groups);
  const int64_t P = parts.prompt_rows, C = parts.completion_rows;
  const auto kp = k.narrow(0, 0, P), vp = v.narrow(0, 0, P);
  const auto a = part_forward(q.narrow(0, 0, P), kp, vp, parts.prompts, groups.scale);
  if (C == 0) return {a.out, a.lse, a.seed, a.unused, {}, {}, {}, {}, {}};
  const auto qc = q.narrow(0, P, C), kc = k.narrow(0, P, C), vc = v.narrow(0, P, C);
  std::vector<PartResult> pieces;
  if (q.is_cuda()) {
    for (int64_t i = 0; i < groups.chunk_starts.size(0); i++) {
      const Part piece{groups.cu_group, groups.chunk_starts[i], groups.max_group, groups.max_chunk, false, groups.chunk_lengths[i]};
      pieces.push_back(part_forward(qc, kp, vp, piece, groups.scale));
    }
  } else {
    pieces.push_back(part_forward(qc, kp, vp, parts.crossing, groups.scale));
  }
  const auto c = part_forward(qc, kc, vc, parts.completions, groups.scale);
  pieces.push_back(c);
  const Tensor out = at::empty({P + C, q.size(1), q.size(2)}, q.options());
  out.narrow(0, 0, P).copy_(a.out);
  const Tensor lse = merge(pieces, groups.cu_group, groups.chunk_lengths, out.narrow(0, P, C));
  return {out, a.lse, a.seed, a.unused, lse, pieces[0].seed, pieces[0].unused, c.seed, c.unused};
}

Shares gradientShares(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Attended& a, const Groups& groups) {
  const auto parts = make_parts(q, groups);
  const int64_t P = parts.prompt_rows, C = parts.completion_rows;
  const auto upper = [P](const Tensor& x) { return x.narrow(0, 0, P); };
  const auto lower = [P, C](const Tensor& x) { return x.narrow(0, P, C); };
  Shares shares;
  shares.prompts = flash_backward(upper(dout), upper(q), upper(k), upper(v), {upper(a.out), a.prompt_lse, a.prompt_seed, a.prompt_unused},
                                  parts.prompts, groups.scale);
  if (C == 0) return shares;
  shares.crossing = flash_backward(lower(dout), lower(q), upper(k), upper(v), {lower(a.out), a.lse, a.cross_seed, a.cross_unused}, parts.crossing,
                                   groups.scale);
  shares.completions = flash_backward(lower(dout), lower(q), lower(k), lower(v), {lower(a.out), a.lse, a.own_seed, a.own_unused}, parts.completions,
                                      groups.scale);
  return shares;
}

TORCH_LIBRARY_FRAGMENT(grove, m) {
  m.def(
      "group_attention(Tensor q, Tensor k, Tensor v, Tensor cu_prompt, Tensor cu_group, Tensor cu_completion, Tensor chunk_starts, "
      "Tensor chunk_lengths, int prompt_rows, int max_prompt, int max_group, int max_completion, int max_chunk, float scale) -> Tensor",
      group_attention);  // composite: autograd comes from the Function above
}

}  // namespace grove
