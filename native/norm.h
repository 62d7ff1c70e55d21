#pragma once

#include <ATen/ATen.h>

#include <array>

namespace grove {

// A norm over the last dimension: an RMS norm, or with a bias a layer norm. x [..., N], weight and bias [N].
struct Norm {
  at::Tensor weight, bias;  // bias undefined: an RMS norm
  double eps;
};

// norm(x), and what its backward wants of a row: mean (layer norm) and 1 / rms or 1 / standard deviation. Undefined where only autograd knows a backward.
struct Normed {
  at::Tensor out, mean, scale;
};

Normed normForward(const at::Tensor& x, const Norm& norm);

// Undefined: not wanted, or in `.grad` already (gradient.h).
struct NormGradients {
  at::Tensor x, weight, bias;
};

// Given `dout` [..., N] of norm(x); `past` (or undefined) is the gradient that reaches x on another way and is added. mean and scale are normForward's.
NormGradients normBackward(const at::Tensor& x, const Norm& norm, const Normed& normed, const at::Tensor& dout, const at::Tensor& past,
                           const std::array<bool, 3>& wanted);

}  // namespace grove
