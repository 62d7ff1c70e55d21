// Gradients of parameters, and products whose backward uses them.
//
// Autograd gives a parameter's gradient a tensor of its own and adds that to `.grad`: for a weight 2 bytes written and 6 moved again for every element,
// with 8 billion of them more than the whole of attention. The product of the weight's gradient can start from what `.grad` holds instead (beta = 1): the
// sum is in float32 and rounded once. Likewise sums over rows.
//
// That is only right inside backward(), which adds into `.grad`; inside grad(), which returns gradients, everything comes back as ever. It is done on CUDA
// alone, so that on the CPU results are autograd's own to the last bit.
#include "gradient.h"

#include <torch/csrc/autograd/graph_task.h>

#include "cuda_operand.h"
#include "kernels.h"
#include "runtime.h"
#include "skinny_linear.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor accumulator(const Tensor& leaf) {
  if (!leaf.is_cuda() || !leaf.is_leaf() || !leaf.requires_grad()) return {};
  const auto* asked = torch::autograd::get_current_graph_task_exec_info();  // empty: no gradients in particular, so all leaves accumulate
  if (asked == nullptr || !asked->empty()) return {};
  const Tensor& grad = leaf.grad();
  const bool fits = grad.defined() && grad.scalar_type() == leaf.scalar_type() && grad.is_contiguous() && !grad.requires_grad() &&
                    grad.device() == leaf.device();
  return fits ? grad : Tensor();
}

Tensor weightGradient(const Tensor& weight, const Tensor& dout, const Tensor& x) {
  Tensor grad = accumulator(weight);
  if (!grad.defined()) return at::mm(dout.t(), x);
  grad.addmm_(dout.t(), x);
  return {};
}

#ifdef GROVE_CUDA
namespace {

// Into `grad`, or where that is undefined into a tensor that comes back; false where the kernel does not fit.
bool sumColumns(const Tensor& dout, Tensor& grad, Tensor& result) {
  static const auto launch = reinterpret_cast<GroveColumnSumsLauncher>(kernelSymbol("grove_column_sums"));
  static const auto scratch = reinterpret_cast<GroveColumnScratch>(kernelSymbol("grove_column_sums_scratch"));
  if (launch == nullptr || scratch == nullptr || !isPlain(dout) || dout.numel() == 0 || dout.size(1) % 8 != 0) return false;
  c10::cuda::CUDAGuard guard(dout.device());
  const int rows = static_cast<int>(dout.size(0)), columns = static_cast<int>(dout.size(1));
  Tensor parts = at::empty({scratch(rows, columns)}, dout.options().dtype(at::kFloat));
  if (!grad.defined()) result = at::empty({columns}, dout.options());
  Tensor& out = grad.defined() ? grad : result;
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(dout.const_data_ptr(), out.mutable_data_ptr(), parts.mutable_data_ptr<float>(), rows, columns,
                                                 grad.defined(), c10::cuda::getCurrentCUDAStream().stream())));
  return true;
}

}  // namespace
#endif

Tensor biasGradient(const Tensor& bias, const Tensor& dout) {
#ifdef GROVE_CUDA
  if (bias.scalar_type() == at::kBFloat16) {
    Tensor grad = accumulator(bias), result;
    if (sumColumns(dout, grad, result)) return result;
  }
#endif
  return dout.sum({0}, true).view({dout.size(1)});  // as autograd calls it
}

namespace {

// x weight^T (+ bias) (+ residual)
struct TrainedLinear : torch::autograd::Function<TrainedLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual) {
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->save_for_backward({x, weight, bias.value_or(Tensor())});
    return residual.has_value() ? linear_residual(x, weight, *residual) : grove::linear(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &dout = grads[0];
    Tensor dx, dWeight, dBias;
    if (wants(ctx, 1)) dWeight = weightGradient(weight, dout, x);
    if (bias.defined() && wants(ctx, 2)) dBias = biasGradient(bias, dout);
    if (wants(ctx, 0)) dx = at::mm(dout, weight);
    return {dx, dWeight, dBias, ctx->saved_data["has_residual"].toBool() ? dout : Tensor()};
  }
};

}  // namespace

Tensor trainedLinear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual) {
  return TrainedLinear::apply(x, weight, bias, residual);
}

}  // namespace grove
