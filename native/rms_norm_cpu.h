#pragma once

#include <ATen/ATen.h>

#include <utility>

namespace grove {

// x / sqrt(mean(x^2) + eps) * weight over the last dimension, x [..., N] and weight [N] float32 or float64, and 1 / rms of every row.
std::pair<at::Tensor, at::Tensor> rmsNormCpu(const at::Tensor& x, const at::Tensor& weight, double eps);

// Gradients of x and weight, given 1 / rms (scale) and the gradient of the norm.
std::pair<at::Tensor, at::Tensor> rmsNormCpuBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& dout);

}  // namespace grove
