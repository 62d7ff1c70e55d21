#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "group_attention.h"

namespace grove {

// The whole gradients of a group attention in float32, in the order of kernels/sum_layout.cuh: q [H, T, D], k and v [HK, T, D]. Those of q and k are still
// to be multiplied by the scale.
struct GradientSums {
  at::Tensor q, k, v;
  double scale;
};

// gradientShares in one kernel, already added up. None where that does not fit: on Hopper in bfloat16 with a head size of 128 only, and not where
// deterministic algorithms are asked for, since the order of its sums is not fixed.
std::optional<GradientSums> gradientSums(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Attended& attended,
                                         const Groups& groups);

// Writes them to dq [T, H, D], dk and dv [T, HK, D], bfloat16, with rows of any stride; q and k turned back by cos and sin [T, .., D] where defined.
void writeSums(const GradientSums& sums, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv);

}  // namespace grove
