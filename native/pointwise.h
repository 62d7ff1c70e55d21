#pragma once

#include <ATen/ATen.h>

#include <utility>

namespace grove {

// silu(gate) * up for gate_up = [gate | up], [T, 2 I] to [T, I]; without a gradient. See pointwise.cc.
at::Tensor swiglu(const at::Tensor& gate_up);

// Given the gradient of swiglu(gate_up): that of gate_up, and swiglu(gate_up) again. d_product may be overwritten.
std::pair<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& gate_up, at::Tensor d_product);

// grove::rotate.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// Whether that is a kernel here.
bool rotateFits(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace grove
