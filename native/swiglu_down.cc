// grove::swiglu_down: residual + (silu(gate) * up) down^T, with gate_up = [gate | up]. Autograd would keep silu(gate), the product and gate_up for the
// backward, 4 I values a token; this keeps gate_up alone, 2 I, and computes the others again (two cheap passes). grove::swiglu is its first part alone,
// for an adapter beside down that reads something else than down does.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gradient.h"
#include "pointwise.h"
#include "skinny_linear.h"

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SwigluDown : torch::autograd::Function<SwigluDown> {
  static Tensor forward(AutogradContext* ctx, const Tensor& residual, const Tensor& gate_up, const Tensor& down) {
    ctx->save_for_backward({gate_up, down});
    return linear_residual_halves(swiglu(gate_up), down, residual);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate_up = saved[0], &down = saved[1], &dout = grads[0];
    const auto [d_gate_up, product] = swiglu_backward(gate_up, at::mm(dout, down));
    return {dout, d_gate_up, wants(ctx, 2) ? weightGradient(down, dout, product) : Tensor()};
  }
};

struct Swiglu : torch::autograd::Function<Swiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up) {
    ctx->save_for_backward({gate_up});
    return grove::swiglu(gate_up);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {swiglu_backward(ctx->get_saved_variables()[0], grads[0].clone()).first};
  }
};

Tensor swiglu_op(const Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "swiglu: expected gate_up [T, 2 I], got ", gate_up.sizes());
  return Swiglu::apply(gate_up);
}

// residual [T, X], gate_up [T, 2 I], down [X, I]; returns [T, X]
Tensor swiglu_down(const Tensor& residual, const Tensor& gate_up, const Tensor& down) {
  TORCH_CHECK(gate_up.dim() == 2 && down.dim() == 2 && gate_up.size(1) == 2 * down.size(1) && residual.dim() == 2 &&
                  residual.size(0) == gate_up.size(0) && residual.size(1) == down.size(0),
              "expected residual [T, X], gate_up [T, 2 I], down [X, I], got ", residual.sizes(), ", ", gate_up.sizes(), ", ",
              down.sizes());
  return SwigluDown::apply(residual, gate_up, down);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above
  m.def("swiglu_down(Tensor residual, Tensor gate_up, Tensor down) -> Tensor", swiglu_down);
  m.def("swiglu(Tensor gate_up) -> Tensor", swiglu_op);
}

}  // namespace grove
