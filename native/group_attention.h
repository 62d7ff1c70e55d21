#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace grove {

// Which rows attend to which: the arguments of grove::group_attention behind q, k and v; see group_attention.cc.
struct Groups {
  at::Tensor cu_prompt, cu_group, cu_completion, chunk_starts, chunk_lengths;
  int64_t prompt_rows, max_prompt, max_group, max_completion, max_chunk;
  double scale;
};

// Throws where they do not fit q [T, H, D], k and v [T, HK, D].
void checkGroups(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Groups& groups);

// grove::group_attention.
at::Tensor groupAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Groups& groups);

// The attention of all rows, and what its backward wants. The last five are undefined where there are no completions.
struct Attended {
  at::Tensor out, prompt_lse, prompt_seed, prompt_unused;  // out [T, H, D]
  at::Tensor lse, cross_seed, cross_unused, own_seed, own_unused;
};

Attended attendGroups(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Groups& groups);

// The same by a kernel of our own, where it fits (group_attention_forward.cc).
std::optional<Attended> attendGroupsInOneKernel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Groups& groups);

// Gradients of one part's queries, keys and values.
struct Share {
  at::Tensor q, k, v;
};

// What the three parts give on CUDA: the prompts to themselves [P rows]; the completions [C rows] to the prompts' keys [P rows]; to themselves [C rows].
struct Shares {
  Share prompts, crossing, completions;
};

Shares gradientShares(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Attended& attended,
                      const Groups& groups);

}  // namespace grove
