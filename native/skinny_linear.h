#pragma once

#include <ATen/ATen.h>

namespace grove {

// residual + x weight^T; x [T, K], weight [N, K], residual [T, N]. See skinny_linear.cc.
at::Tensor linear_residual(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);

// The same with the sum over K taken in two halves where it is long; no gradient.
at::Tensor linear_residual_halves(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);

}  // namespace grove
