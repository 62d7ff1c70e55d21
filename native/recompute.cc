// Parts of a layer that keep less for the backward than their operators would by themselves, and compute the rest again there. Forward and backward
// are the same calls on the same values as without, so results and gradients are the same bits.
//
//   op                                          keeps        computes again
//   grove::norm_linear       linear(norm(x))    x            the norm
//   grove::quick_gelu_linear linear(gelu(x))    x            quick GELU
//   grove::swiglu_mlp        down(swiglu(gate_up(norm(x)))) + residual   x   the norm, gate and up (SwiGLU: anyway, see layers.cc)
//   grove::quick_gelu_mlp    fc2(gelu(fc1(norm(x))))                     x   the norm, fc1, quick GELU
//
// src/model/recompute.ts says what that saves and costs. Compositions on every device; a norm with a bias is a layer norm, one without an RMS norm.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <vector>

#include "pointwise.h"
#include "skinny_linear.h"

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

Tensor norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  if (bias.defined()) return at::layer_norm(x, weight.sizes(), weight, bias, eps);
  static const auto rms = c10::Dispatcher::singleton().findSchemaOrThrow("grove::rms_norm", "").typed<Tensor(const Tensor&, const Tensor&, double)>();
  return rms.call(x, weight, eps);
}

Tensor quickGelu(const Tensor& x) {
  static const auto gelu = c10::Dispatcher::singleton().findSchemaOrThrow("grove::quick_gelu", "").typed<Tensor(const Tensor&)>();
  return gelu.call(x);
}

// Gradients of `inputs` (undefined where they want none) through `first`, which is run again: given its value, `last` gives its gradient.
template <class First, class Last>
variable_list backThrough(const variable_list& inputs, const std::vector<bool>& wanted, First first, Last last) {
  variable_list leaves(inputs.size()), asked, result(inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    if (!inputs[i].defined()) continue;
    leaves[i] = inputs[i].detach();
    if (!wanted[i]) continue;
    leaves[i].requires_grad_();
    asked.push_back(leaves[i]);
  }
  Tensor value;
  {
    at::AutoGradMode recording(!asked.empty());
    value = first(leaves);
  }
  const Tensor gradient = last(value.detach());
  if (asked.empty()) return result;
  const auto gradients = torch::autograd::grad({value}, asked, {gradient});
  for (size_t i = 0, next = 0; i < inputs.size(); i++) {
    if (inputs[i].defined() && wanted[i]) result[i] = gradients[next++];
  }
  return result;
}

constexpr size_t kAbsent = SIZE_MAX;

// Of the inputs at these places, counted among the tensors that are there.
std::vector<bool> wantedOf(AutogradContext* ctx, const std::vector<size_t>& places) {
  std::vector<bool> wanted;
  for (const size_t place : places) wanted.push_back(place != kAbsent && ctx->needs_input_grad(place));
  return wanted;
}

// What autograd gives for linear(z, weight, bias), as it calls it; the latter two where they are wanted.
struct LinearBackward {
  Tensor d_weight, d_bias;
  Tensor operator()(const Tensor& z, const Tensor& weight, const Tensor& dout, const std::vector<bool>& wanted) {
    if (wanted[0]) d_weight = at::mm(dout.t(), z);
    if (wanted[1]) d_bias = dout.sum({0}, true).view({dout.size(1)});
    return at::mm(dout, weight);
  }
};

struct NormLinear : torch::autograd::Function<NormLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight, const Tensor& weight, const MaybeTensor& norm_bias,
                        const MaybeTensor& bias, double eps) {
    ctx->save_for_backward({x, norm_weight, norm_bias.value_or(Tensor()), weight});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["has_bias"] = bias.has_value();
    return at::linear(norm(x, norm_weight, norm_bias.value_or(Tensor()), eps), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool shifts = s[2].defined(), has_bias = ctx->saved_data["has_bias"].toBool();
    LinearBackward linear;
    const auto d = backThrough(
        {s[0], s[1], s[2]}, wantedOf(ctx, {0, 1, shifts ? 3 : kAbsent}),
        [&](const variable_list& in) { return norm(in[0], in[1], in[2], eps); },
        [&](const Tensor& z) { return linear(z, s[3], grads[0], wantedOf(ctx, {2, has_bias ? (shifts ? 4UL : 3UL) : kAbsent})); });
    return {d[0], d[1], linear.d_weight, d[2], linear.d_bias, {}};
  }
};

struct QuickGeluLinear : torch::autograd::Function<QuickGeluLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias) {
    ctx->save_for_backward({x, weight});
    return at::linear(quickGelu(x), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    LinearBackward linear;
    const auto d = backThrough({s[0]}, wantedOf(ctx, {0}), [](const variable_list& in) { return quickGelu(in[0]); },
                               [&](const Tensor& z) { return linear(z, s[1], grads[0], wantedOf(ctx, {1, 2})); });
    return {d[0], linear.d_weight, linear.d_bias};
  }
};

struct SwigluMlp : torch::autograd::Function<SwigluMlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& residual, const Tensor& x, const Tensor& norm_weight, const Tensor& gate_up,
                        const Tensor& down, double eps) {
    ctx->save_for_backward({x, norm_weight, gate_up, down});
    ctx->saved_data["eps"] = eps;
    return linear_residual_halves(swiglu(at::linear(norm(x, norm_weight, {}, eps), gate_up)), down, residual);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const Tensor &down = s[3], &dout = grads[0];
    Tensor d_down;
    const auto d = backThrough(
        {s[0], s[1], s[2]}, wantedOf(ctx, {1, 2, 3}),
        [&](const variable_list& in) { return at::linear(norm(in[0], in[1], {}, eps), in[2]); },
        [&](const Tensor& both) {
          const auto [d_both, product] = swiglu_backward(both, at::mm(dout, down));
          if (ctx->needs_input_grad(4)) d_down = at::mm(dout.t(), product);
          return d_both;
        });
    return {dout, d[0], d[1], d[2], d_down, {}};
  }
};

struct QuickGeluMlp : torch::autograd::Function<QuickGeluMlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight1,
                        const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, double eps) {
    ctx->save_for_backward({x, norm_weight, norm_bias, weight1, bias1, weight2});
    ctx->saved_data["eps"] = eps;
    return at::linear(quickGelu(at::linear(norm(x, norm_weight, norm_bias, eps), weight1, bias1)), weight2, bias2);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    LinearBackward linear;
    const auto d = backThrough(
        {s[0], s[1], s[2], s[3], s[4]}, wantedOf(ctx, {0, 1, 2, 3, 4}),
        [&](const variable_list& in) { return quickGelu(at::linear(norm(in[0], in[1], in[2], eps), in[3], in[4])); },
        [&](const Tensor& z) { return linear(z, s[5], grads[0], wantedOf(ctx, {5, 6})); });
    return {d[0], d[1], d[2], d[3], d[4], linear.d_weight, linear.d_bias, {}};
  }
};

// x [T, K], norm_weight and norm_bias [K], weight [N, K], bias [N]; returns [T, N]
Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, const MaybeTensor& norm_bias, double eps, const Tensor& weight,
                   const MaybeTensor& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "norm_linear: expected x [T, K], weight [N, K], got ", x.sizes(),
              ", ", weight.sizes());
  return NormLinear::apply(x, norm_weight, weight, norm_bias, bias, eps);
}

// x [T, K], weight [N, K], bias [N]; returns [T, N]
Tensor quick_gelu_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "quick_gelu_linear: expected x [T, K], weight [N, K], got ",
              x.sizes(), ", ", weight.sizes());
  return QuickGeluLinear::apply(x, weight, bias);
}

// residual and x [T, X], gate_up [2 I, X], down [X, I]; returns [T, X]
Tensor swiglu_mlp(const Tensor& residual, const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& gate_up, const Tensor& down) {
  TORCH_CHECK(x.dim() == 2 && residual.sizes() == x.sizes() && gate_up.dim() == 2 && down.dim() == 2 && gate_up.size(1) == x.size(1) &&
                  down.size(0) == x.size(1) && gate_up.size(0) == 2 * down.size(1),
              "swiglu_mlp: expected residual and x [T, X], gate_up [2 I, X], down [X, I], got ", residual.sizes(), ", ", x.sizes(), ", ",
              gate_up.sizes(), ", ", down.sizes());
  return SwigluMlp::apply(residual, x, norm_weight, gate_up, down, eps);
}

// x [T, E], weight1 [F, E], weight2 [E, F], norms and biases accordingly; returns [T, E]
Tensor quick_gelu_mlp(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& weight1, const Tensor& bias1,
                      const Tensor& weight2, const Tensor& bias2) {
  TORCH_CHECK(x.dim() == 2 && weight1.dim() == 2 && weight2.dim() == 2 && weight1.size(1) == x.size(1) && weight2.size(1) == weight1.size(0),
              "quick_gelu_mlp: expected x [T, E], weight1 [F, E], weight2 [E, F], got ", x.sizes(), ", ", weight1.sizes(), ", ", weight2.sizes());
  return QuickGeluMlp::apply(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above
  m.def("norm_linear(Tensor x, Tensor norm_weight, Tensor? norm_bias, float eps, Tensor weight, Tensor? bias) -> Tensor", norm_linear);
  m.def("quick_gelu_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor", quick_gelu_linear);
  m.def("swiglu_mlp(Tensor residual, Tensor x, Tensor norm_weight, float eps, Tensor gate_up, Tensor down) -> Tensor", swiglu_mlp);
  m.def(
      "quick_gelu_mlp(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) "
      "-> Tensor",
      quick_gelu_mlp);
}

}  // namespace grove
