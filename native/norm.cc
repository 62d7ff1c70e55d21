// RMS norms and layer norms, forward and backward, and grove::rms_norm: x / sqrt(mean(x^2) + eps) * weight.
//
// libtorch's RMS norm on the CPU is a chain of a dozen passes; in float32 and float64 rms_norm_cpu.cc has it in one. On CUDA in bfloat16 the RMS norm's forward is a
// kernel that a decode step can chain (kernels/rms_norm.cu), which gives training and decode the same bits, and the backward of both norms is one
// (kernels/norm_backward.cu) that takes along the residual's gradient and adds the weight's to what is there. Everywhere else these are ATen's operators.
#include "norm.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "cuda_operand.h"
#include "gradient.h"
#include "kernels.h"
#include "rms_norm_cpu.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The kernels and loops below read as many values of the weight as x has columns.
void checkWeight(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() > 0 && weight.dim() == 1 && x.size(-1) == weight.size(0), "expected weight [", x.dim() > 0 ? x.size(-1) : 0,
              "], got ", weight.sizes());
  TORCH_CHECK(x.device() == weight.device(), "expected weight on ", x.device(), ", got one on ", weight.device());
}

bool isLoop(const Tensor& x, const Norm& norm) {
  return !norm.bias.defined() && x.is_cpu() && x.scalar_type() == norm.weight.scalar_type() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

// The backward that autograd knows, through the forward run again.
NormGradients rerunBackward(const Tensor& x, const Norm& norm, const Tensor& dout, const std::array<bool, 3>& wanted) {
  variable_list leaves = {x.detach(), norm.weight.detach(), norm.bias.defined() ? norm.bias.detach() : Tensor()}, asked;
  for (size_t i = 0; i < leaves.size(); i++) {
    if (leaves[i].defined() && wanted[i]) asked.push_back(leaves[i].requires_grad_());
  }
  if (asked.empty()) return {};
  Tensor out;
  {
    at::AutoGradMode recording(true);
    out = normForward(leaves[0], {leaves[1], leaves[2], norm.eps}).out;
  }
  const auto gradients = torch::autograd::grad({out}, asked, {dout});
  std::array<Tensor, 3> found;
  for (size_t i = 0, next = 0; i < leaves.size(); i++) {
    if (leaves[i].defined() && wanted[i]) found[i] = gradients[next++];
  }
  return {found[0], found[1], found[2]};
}

#ifdef GROVE_CUDA
constexpr int64_t kMostColumns = 8192;  // of kernels/rms_norm.cu and norm_backward.cu

bool fitsKernel(const Tensor& x, const Tensor& weight) {
  return isPlain(x) && isPlain(weight) && x.numel() > 0 && x.size(-1) % 8 == 0 && x.size(-1) <= kMostColumns;
}

Normed kernelForward(const Tensor& x, const Norm& norm) {
  static const auto launch = reinterpret_cast<GroveRmsNormLauncher>(kernelSymbol("grove_rms_norm"));
  c10::cuda::CUDAGuard guard(x.device());
  auto shape = x.sizes().vec();
  shape.back() = 1;
  Tensor out = at::empty_like(x), scale = at::empty(shape, x.options().dtype(at::kFloat));
  C10_CUDA_CHECK(static_cast<cudaError_t>(
      launch(x.const_data_ptr(), norm.weight.const_data_ptr(), out.mutable_data_ptr(), scale.mutable_data_ptr<float>(),
             static_cast<int>(scale.numel()), static_cast<int>(x.size(-1)), static_cast<float>(norm.eps), c10::cuda::getCurrentCUDAStream().stream())));
  return {out, Tensor(), scale};
}

// Undefined x where the kernel does not fit.
NormGradients kernelBackward(const Tensor& x, const Norm& norm, const Normed& normed, const Tensor& dout, const Tensor& past,
                             const std::array<bool, 3>& wanted) {
  static const auto launch = reinterpret_cast<GroveNormBackwardLauncher>(kernelSymbol("grove_norm_backward"));
  static const auto scratchFloats = reinterpret_cast<GroveColumnScratch>(kernelSymbol("grove_norm_backward_scratch"));
  const auto isTable = [](const Tensor& t) { return t.scalar_type() == at::kFloat && t.is_contiguous(); };
  if (launch == nullptr || scratchFloats == nullptr || !fitsKernel(x, norm.weight) || !isPlain(dout) || (past.defined() && !isPlain(past)) ||
      !isTable(normed.scale) || (normed.mean.defined() && !isTable(normed.mean)))
    return {};
  c10::cuda::CUDAGuard guard(x.device());
  const int columns = static_cast<int>(x.size(-1)), rows = static_cast<int>(x.numel() / columns);
  NormGradients result{at::empty_like(x), {}, {}};
  Tensor weightInto, biasInto;
  bool addsWeight = false, addsBias = false;
  const auto place = [](const Tensor& parameter, Tensor& into, bool& adds, Tensor& fresh) {
    into = accumulator(parameter);
    adds = into.defined();
    if (!adds) into = fresh = at::empty_like(parameter);
  };
  if (wanted[1]) place(norm.weight, weightInto, addsWeight, result.weight);
  if (wanted[2]) place(norm.bias, biasInto, addsBias, result.bias);
  Tensor scratch = at::empty({scratchFloats(rows, columns)}, x.options().dtype(at::kFloat));
  const auto data = [](Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  const GroveNormBackward arguments = {x.const_data_ptr(),
                                       norm.weight.const_data_ptr(),
                                       dout.const_data_ptr(),
                                       past.defined() ? past.const_data_ptr() : nullptr,
                                       normed.mean.defined() ? normed.mean.const_data_ptr<float>() : nullptr,
                                       normed.scale.const_data_ptr<float>(),
                                       result.x.mutable_data_ptr(),
                                       data(weightInto),
                                       data(biasInto),
                                       addsWeight,
                                       addsBias,
                                       scratch.mutable_data_ptr<float>(),
                                       rows,
                                       columns};
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
  return result;
}
#endif

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps) {
    const auto normed = normForward(x, {weight, Tensor(), eps});
    ctx->save_for_backward({x, weight, normed.scale});
    ctx->saved_data["eps"] = eps;
    return normed.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto d = normBackward(saved[0], {saved[1], Tensor(), ctx->saved_data["eps"].toDouble()}, {Tensor(), Tensor(), saved[2]}, grads[0], Tensor(),
                                {wants(ctx, 0), wants(ctx, 1), false});
    return {d.x, d.weight, {}};
  }
};

// x [..., N], weight [N]
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  checkWeight(x, weight);
#ifdef GROVE_CUDA
  if (fitsKernel(x, weight) && kernelSymbol("grove_rms_norm") != nullptr) return RmsNorm::apply(x, weight, eps);
#endif
  return isLoop(x, {weight, Tensor(), eps}) ? RmsNorm::apply(x, weight, eps) : at::rms_norm(x, weight.sizes(), weight, eps);
}

}  // namespace

Normed normForward(const Tensor& x, const Norm& norm) {
  checkWeight(x, norm.weight);
  if (norm.bias.defined()) {
    auto [out, mean, scale] = at::native_layer_norm(x, norm.weight.sizes(), norm.weight, norm.bias, norm.eps);
    return {out, mean, scale};
  }
#ifdef GROVE_CUDA
  if (fitsKernel(x, norm.weight) && kernelSymbol("grove_rms_norm") != nullptr) return kernelForward(x, norm);
#endif
  if (isLoop(x, norm)) {
    auto [out, scale] = rmsNormCpu(x, norm.weight, norm.eps);
    return {out, Tensor(), scale};
  }
  return {at::rms_norm(x, norm.weight.sizes(), norm.weight, norm.eps), Tensor(), Tensor()};
}

NormGradients normBackward(const Tensor& x, const Norm& norm, const Normed& normed, const Tensor& dout, const Tensor& past,
                           const std::array<bool, 3>& wanted) {
  NormGradients d;
#ifdef GROVE_CUDA
  if (normed.scale.defined() && wanted[0]) d = kernelBackward(x, norm, normed, dout.contiguous(), past.defined() ? past.contiguous() : past, wanted);
  if (d.x.defined()) return d;
#endif
  if (norm.bias.defined()) {
    auto [dx, dWeight, dBias] =
        at::native_layer_norm_backward(dout, x, norm.weight.sizes(), normed.mean, normed.scale, norm.weight, norm.bias, wanted);
    d = {dx, dWeight, dBias};
  } else if (isLoop(x, norm)) {
    auto [dx, dWeight] = rmsNormCpuBackward(x, norm.weight, normed.scale, dout);
    d = {dx, dWeight, Tensor()};
  } else if (normed.scale.defined()) {
    auto [dx, dWeight] = at::_fused_rms_norm_backward(dout.contiguous(), x, norm.weight.sizes(), normed.scale, norm.weight, {wanted[0], wanted[1]});
    d = {dx, dWeight, Tensor()};
  } else {
    d = rerunBackward(x, norm, dout, wanted);
  }
  if (past.defined()) d.x = d.x.defined() ? d.x + past : past;
  return d;
}

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Function above, or from ATen
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm);
}

}  // namespace grove
