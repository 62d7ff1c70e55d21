// Products of a decoder layer with an adapter beside the weight: what linear, linear_residual.., linear_swiglu (skinny_linear.cc) and swiglu_down give
// with grove::lora_add_ (lora.cc) behind, or of gate and up before SwiGLU.
//
//   grove::lora_linear(x, weight, bias?, residual?, a, b, spans, scale)            at most one of bias and residual
//   grove::lora_swiglu_down(residual, gate_up, down, a, b, spans, scale)           the adapter is beside down
//   grove::lora_linear_residual_halves(x, weight, residual, a, b, spans, scale)    no gradient
//   grove::lora_linear_swiglu(x, weight, a, b, spans, scale)                       no gradient
//
// Where skinny_linear.cc has a kernel, x a^T is computed first and t b^T added by that kernel to what it has rounded, as kernels/lora_up.cu would do it
// with what it finds in memory: a decode step reads and writes nothing twice and has one small kernel more a product, and the bits are those of training,
// where a library's large product and lora_up.cu follow one another.
//
// As operators with a backward of their own they also keep less: of SwiGLU's product nothing, and the gradient of x is one tensor, to which the adapter
// adds its share.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gradient.h"
#include "lora.h"
#include "pointwise.h"
#include "skinny_linear.h"

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x weight^T (+ bias or residual) with its adapter, and what is between the adapter's factors; no gradient.
std::pair<Tensor, Tensor> product(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                  const Lora& lora) {
  const Tensor t = loraDown(x, lora);
  if (bias.has_value() || residual.has_value()) {
    const Tensor out = skinnyLora(bias ? kGroveBias : kGroveResidual, x, weight, bias ? *bias : *residual, t, lora);
    if (out.defined()) return {out, t};
  }
  const Tensor y = residual ? linear_residual(x, weight, *residual) : grove::linear(x, weight, bias);
  loraUp(y, t, lora);
  return {y, t};
}

void keep(AutogradContext* ctx, const Lora& lora) {
  ctx->saved_data["spans"] = lora.spans;
  ctx->saved_data["scale"] = lora.scale;
}
Lora kept(AutogradContext* ctx, const Tensor& a, const Tensor& b) {
  return {a, b, ctx->saved_data["spans"].toIntVector(), ctx->saved_data["scale"].toDouble()};
}

struct LoraLinear : torch::autograd::Function<LoraLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, std::vector<int64_t> spans, double scale) {
    const Lora lora{a, b, spans, scale};
    const auto [out, t] = product(x, weight, bias, residual, lora);
    ctx->save_for_backward({x, weight, a, b, bias.value_or(Tensor()), t});
    ctx->saved_data["has_residual"] = residual.has_value();
    keep(ctx, lora);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[4], &dout = grads[0];
    const Lora lora = kept(ctx, saved[2], saved[3]);
    const auto [down, db] = loraUpBackward(dout, saved[5], lora, wants(ctx, 3));
    Tensor dx, dWeight, da, dBias;
    if (wants(ctx, 0)) dx = at::mm(dout, weight).addmm_(down, lora.a);
    if (wants(ctx, 1)) dWeight = weightGradient(weight, dout, x);
    if (wants(ctx, 2)) da = weightGradient(lora.a, down, x);
    if (bias.defined() && wants(ctx, 4)) dBias = biasGradient(bias, dout);
    return {dx, dWeight, da, db, dBias, ctx->saved_data["has_residual"].toBool() ? dout : Tensor(), {}, {}};
  }
};

struct LoraSwigluDown : torch::autograd::Function<LoraSwigluDown> {
  static Tensor forward(AutogradContext* ctx, const Tensor& residual, const Tensor& gate_up, const Tensor& down, const Tensor& a, const Tensor& b,
                        std::vector<int64_t> spans, double scale) {
    const Lora lora{a, b, spans, scale};
    const Tensor product = swiglu(gate_up), t = loraDown(product, lora), out = linear_residual_halves(product, down, residual);
    loraUp(out, t, lora);
    ctx->save_for_backward({gate_up, down, a, b, t});
    keep(ctx, lora);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate_up = saved[0], &weight = saved[1], &dout = grads[0];
    const Lora lora = kept(ctx, saved[2], saved[3]);
    const auto [down, db] = loraUpBackward(dout, saved[4], lora, wants(ctx, 4));
    const auto [d_gate_up, product] = swiglu_backward(gate_up, at::mm(dout, weight).addmm_(down, lora.a));
    return {dout, d_gate_up, wants(ctx, 2) ? weightGradient(weight, dout, product) : Tensor(),
            wants(ctx, 3) ? weightGradient(lora.a, down, product) : Tensor(), db, {}, {}};
  }
};

Tensor lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const Tensor& a,
                   const Tensor& b, at::IntArrayRef spans, double scale) {
  TORCH_CHECK(!bias.has_value() || !residual.has_value(), "lora_linear: expected a bias or a residual, got both");
  checkLora("lora_linear", {a, b, spans.vec(), scale}, x, weight.size(0));
  return LoraLinear::apply(x, weight, a, b, bias, residual, spans.vec(), scale);
}

Tensor lora_swiglu_down(const Tensor& residual, const Tensor& gate_up, const Tensor& down, const Tensor& a, const Tensor& b, at::IntArrayRef spans,
                        double scale) {
  TORCH_CHECK(gate_up.dim() == 2 && down.dim() == 2 && gate_up.size(1) == 2 * down.size(1) && a.dim() == 2 && a.size(1) == down.size(1),
              "lora_swiglu_down: expected gate_up [T, 2 I], down [X, I], a [r, I], got ", gate_up.sizes(), ", ", down.sizes(), ", ", a.sizes());
  checkLora("lora_swiglu_down", {a, b, spans.vec(), scale}, gate_up.narrow(1, 0, down.size(1)), down.size(0));
  return LoraSwigluDown::apply(residual, gate_up, down, a, b, spans.vec(), scale);
}

Tensor lora_linear_residual_halves(const Tensor& x, const Tensor& weight, const Tensor& residual, const Tensor& a, const Tensor& b, at::IntArrayRef spans,
                                   double scale) {
  at::NoGradGuard noGrad;
  const Lora lora{a, b, spans.vec(), scale};
  checkLora("lora_linear_residual_halves", lora, x, weight.size(0));
  const Tensor t = loraDown(x, lora), out = skinnyLora(kGroveResidualHalves, x, weight, residual, t, lora);
  if (out.defined()) return out;
  const Tensor y = linear_residual_halves(x, weight, residual);
  loraUp(y, t, lora);
  return y;
}

Tensor lora_linear_swiglu(const Tensor& x, const Tensor& weight, const Tensor& a, const Tensor& b, at::IntArrayRef spans, double scale) {
  at::NoGradGuard noGrad;
  const Lora lora{a, b, spans.vec(), scale};
  checkLora("lora_linear_swiglu", lora, x, weight.size(0));
  const Tensor t = loraDown(x, lora), out = skinnyLora(kGroveSwiglu, x, weight, Tensor(), t, lora);
  if (out.defined()) return out;
  const Tensor gateUp = grove::linear(x, weight, std::nullopt);
  loraUp(gateUp, t, lora);
  return swiglu(gateUp);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above
  m.def("lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor a, Tensor b, int[] spans, float scale) -> Tensor", lora_linear);
  m.def("lora_swiglu_down(Tensor residual, Tensor gate_up, Tensor down, Tensor a, Tensor b, int[] spans, float scale) -> Tensor", lora_swiglu_down);
  m.def("lora_linear_residual_halves(Tensor x, Tensor weight, Tensor residual, Tensor a, Tensor b, int[] spans, float scale) -> Tensor",
        lora_linear_residual_halves);
  m.def("lora_linear_swiglu(Tensor x, Tensor weight, Tensor a, Tensor b, int[] spans, float scale) -> Tensor", lora_linear_swiglu);
}

}  // namespace grove
