#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace grove {

// Gradients of parameters, for backward functions. Where backward() adds into a `.grad` that is there, on CUDA, they go straight into it and what comes
// back is undefined: autograd has nothing left to add. Elsewhere they come back. See gradient.cc.

// Of a weight [N, K] in x weight^T: dout^T x, dout [T, N], x [T, K].
at::Tensor weightGradient(const at::Tensor& weight, const at::Tensor& dout, const at::Tensor& x);

// Of a bias [N]: the sum over the rows of dout [T, N].
at::Tensor biasGradient(const at::Tensor& bias, const at::Tensor& dout);

// `.grad` of a leaf where a backward function may add to it and return nothing, else undefined. To be asked inside a backward function.
at::Tensor accumulator(const at::Tensor& leaf);

// Places among the inputs of a custom function that may be absent: autograd counts those that are there.
inline constexpr size_t kAbsent = SIZE_MAX;
inline bool wants(torch::autograd::AutogradContext* ctx, size_t place) { return place != kAbsent && ctx->needs_input_grad(place); }

// x weight^T (+ bias) or residual + x weight^T with the gradients above.
at::Tensor trainedLinear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& residual);

}  // namespace grove
