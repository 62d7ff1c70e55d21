#pragma once

#include <ATen/ATen.h>

#include "lora.h"

namespace grove {

// x weight^T (+ bias), as below without a residual.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// residual + x weight^T; x [T, K], weight [N, K], residual [T, N]. See skinny_linear.cc.
at::Tensor linear_residual(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);

// The same with the sum over K taken in two halves where it is long; no gradient.
at::Tensor linear_residual_halves(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);

// The product of kernels/skinny_linear.cu with what `epilogue` adds, and an adapter's t b^T as the last; undefined where the kernel does not fit.
at::Tensor skinnyLora(GroveEpilogue epilogue, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& addend, const at::Tensor& t,
                      const Lora& lora);

}  // namespace grove
