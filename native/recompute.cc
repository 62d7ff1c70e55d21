// Parts of a layer that know what their backward needs, and may keep less than that and compute the rest again there. Forward and backward are the
// same calls on the same values either way, so results and gradients are the same bits.
//
//   op                                          keeps        computes again
//   grove::norm_linear       linear(norm(x))    x            the norm, unless it is told to keep it
//   grove::quick_gelu_linear linear(gelu(x))    x            quick GELU
//   grove::swiglu_mlp        x + down(swiglu(gate_up(norm(x))))    x   the norm, gate and up (SwiGLU: anyway, see swiglu_down.cc)
//   grove::quick_gelu_mlp    x + fc2(gelu(fc1(norm(x))))           x   the norm, fc1, quick GELU
//
// All but the second stand where a layer forks into a branch and its residual. They see both gradients, so the norm's backward adds them up as it writes
// (norm.h); norm_linear returns x beside the product for that, to be used as the residual.
//
// src/model/recompute.ts says what is kept and what that costs. Compositions on every device; a norm with a bias is a layer norm, one without an RMS norm.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>

#include "gradient.h"
#include "norm.h"
#include "pointwise.h"
#include "skinny_linear.h"

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

Tensor quickGelu(const Tensor& x) {
  static const auto gelu = c10::Dispatcher::singleton().findSchemaOrThrow("grove::quick_gelu", "").typed<Tensor(const Tensor&)>();
  return gelu.call(x);
}

// quickGelu of a leaf, recorded.
Tensor recordedGelu(Tensor& leaf) {
  at::AutoGradMode recording(true);
  return quickGelu(leaf.requires_grad_());
}

struct NormLinear : torch::autograd::Function<NormLinear> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight, const Tensor& weight, const MaybeTensor& norm_bias,
                               const MaybeTensor& bias, double eps, bool keep) {
    const auto normed = normForward(x, {norm_weight, norm_bias.value_or(Tensor()), eps});
    const Tensor none;
    ctx->save_for_backward({x, norm_weight, norm_bias.value_or(none), weight, bias.value_or(none), keep ? normed.out : none,
                            keep ? normed.mean : none, keep ? normed.scale : none});
    ctx->saved_data["eps"] = eps;
    ctx->set_materialize_grads(false);
    return {grove::linear(normed.out, weight, bias), x};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &weight = s[3], &bias = s[4], &dout = grads[0], &past = grads[1];
    if (!dout.defined()) return {past, {}, {}, {}, {}, {}, {}};
    const Norm norm{s[1], s[2], ctx->saved_data["eps"].toDouble()};
    const bool shifts = norm.bias.defined();
    const auto normed = s[5].defined() ? Normed{s[5], s[6], s[7]} : normForward(x, norm);
    Tensor dWeight, dBias;
    if (wants(ctx, 2)) dWeight = weightGradient(weight, dout, normed.out);
    if (bias.defined() && wants(ctx, shifts ? 4 : 3)) dBias = biasGradient(bias, dout);
    const auto d = normBackward(x, norm, normed, at::mm(dout, weight), past, {wants(ctx, 0), wants(ctx, 1), shifts && wants(ctx, 3)});
    return {d.x, d.weight, dWeight, d.bias, dBias, {}, {}};
  }
};

struct QuickGeluLinear : torch::autograd::Function<QuickGeluLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias) {
    ctx->save_for_backward({x, weight, bias});
    return grove::linear(quickGelu(x), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &weight = s[1], &bias = s[2], &dout = grads[0];
    Tensor leaf = s[0].detach(), dx, dWeight, dBias;
    const Tensor activated = recordedGelu(leaf);
    if (wants(ctx, 1)) dWeight = weightGradient(weight, dout, activated.detach());
    if (wants(ctx, 2)) dBias = biasGradient(bias, dout);
    if (wants(ctx, 0)) dx = torch::autograd::grad({activated}, {leaf}, {at::mm(dout, weight)})[0];
    return {dx, dWeight, dBias};
  }
};

struct SwigluMlp : torch::autograd::Function<SwigluMlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight, const Tensor& gate_up, const Tensor& down, double eps) {
    ctx->save_for_backward({x, norm_weight, gate_up, down});
    ctx->saved_data["eps"] = eps;
    return linear_residual_halves(swiglu(grove::linear(normForward(x, {norm_weight, Tensor(), eps}).out, gate_up, std::nullopt)), down, x);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &gate_up = s[2], &down = s[3], &dout = grads[0];
    const Norm norm{s[1], Tensor(), ctx->saved_data["eps"].toDouble()};
    const auto normed = normForward(x, norm);
    const auto [d_both, product] = swiglu_backward(grove::linear(normed.out, gate_up, std::nullopt), at::mm(dout, down));
    Tensor d_down, d_gate_up;
    if (wants(ctx, 3)) d_down = weightGradient(down, dout, product);
    if (wants(ctx, 2)) d_gate_up = weightGradient(gate_up, d_both, normed.out);
    const auto d = normBackward(x, norm, normed, at::mm(d_both, gate_up), dout, {wants(ctx, 0), wants(ctx, 1), false});
    return {d.x, d.weight, d_gate_up, d_down, {}};
  }
};

struct QuickGeluMlp : torch::autograd::Function<QuickGeluMlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight1,
                        const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, double eps) {
    ctx->save_for_backward({x, norm_weight, norm_bias, weight1, bias1, weight2, bias2});
    ctx->saved_data["eps"] = eps;
    return x + grove::linear(quickGelu(grove::linear(normForward(x, {norm_weight, norm_bias, eps}).out, weight1, bias1)), weight2, bias2);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &weight1 = s[3], &bias1 = s[4], &weight2 = s[5], &bias2 = s[6], &dout = grads[0];
    const Norm norm{s[1], s[2], ctx->saved_data["eps"].toDouble()};
    const auto normed = normForward(x, norm);
    Tensor up = grove::linear(normed.out, weight1, bias1), dWeight1, dBias1, dWeight2, dBias2;
    const Tensor activated = recordedGelu(up);
    if (wants(ctx, 5)) dWeight2 = weightGradient(weight2, dout, activated.detach());
    if (wants(ctx, 6)) dBias2 = biasGradient(bias2, dout);
    const Tensor d_up = torch::autograd::grad({activated}, {up}, {at::mm(dout, weight2)})[0];
    if (wants(ctx, 3)) dWeight1 = weightGradient(weight1, d_up, normed.out);
    if (wants(ctx, 4)) dBias1 = biasGradient(bias1, d_up);
    const auto d = normBackward(x, norm, normed, at::mm(d_up, weight1), dout, {wants(ctx, 0), wants(ctx, 1), wants(ctx, 2)});
    return {d.x, d.weight, d.bias, dWeight1, dBias1, dWeight2, dBias2, {}};
  }
};

// x [T, K], norm_weight and norm_bias [K], weight [N, K], bias [N]; returns the product [T, N] and x, for what else x is used for. `keep` the norm.
std::tuple<Tensor, Tensor> norm_linear(const Tensor& x, const Tensor& norm_weight, const MaybeTensor& norm_bias, double eps, const Tensor& weight,
                                       const MaybeTensor& bias, bool keep) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "norm_linear: expected x [T, K], weight [N, K], got ", x.sizes(),
              ", ", weight.sizes());
  const auto results = NormLinear::apply(x, norm_weight, weight, norm_bias, bias, eps, keep);
  return {results[0], results[1]};
}

// x [T, K], weight [N, K], bias [N]; returns [T, N]
Tensor quick_gelu_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "quick_gelu_linear: expected x [T, K], weight [N, K], got ",
              x.sizes(), ", ", weight.sizes());
  return QuickGeluLinear::apply(x, weight, bias);
}

// x [T, X], gate_up [2 I, X], down [X, I]; returns [T, X]
Tensor swiglu_mlp(const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& gate_up, const Tensor& down) {
  TORCH_CHECK(x.dim() == 2 && gate_up.dim() == 2 && down.dim() == 2 && gate_up.size(1) == x.size(1) && down.size(0) == x.size(1) &&
                  gate_up.size(0) == 2 * down.size(1),
              "swiglu_mlp: expected x [T, X], gate_up [2 I, X], down [X, I], got ", x.sizes(), ", ", gate_up.sizes(), ", ", down.sizes());
  return SwigluMlp::apply(x, norm_weight, gate_up, down, eps);
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
  m.def("norm_linear(Tensor x, Tensor norm_weight, Tensor? norm_bias, float eps, Tensor weight, Tensor? bias, bool keep) -> (Tensor, Tensor)",
        norm_linear);
  m.def("quick_gelu_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor", quick_gelu_linear);
  m.def("swiglu_mlp(Tensor x, Tensor norm_weight, float eps, Tensor gate_up, Tensor down) -> Tensor", swiglu_mlp);
  m.def(
      "quick_gelu_mlp(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) "
      "-> Tensor",
      quick_gelu_mlp);
}

}  // namespace grove
