// Products of few rows with a weight, and what follows them in a layer:
//
//   grove::linear(x [T, K], weight [N, K], bias [N]?)              x weight^T + bias
//   grove::linear_residual(x, weight, residual [T, N])             residual + x weight^T
//   grove::linear_residual_halves(x, weight, residual)             the same, no gradient; see below
//   grove::linear_swiglu(x, weight [2 I, K])                       silu(x gate^T) * x up^T, weight = [gate | up]
//
// With at most 128 rows in bfloat16 on Hopper each is one kernel (kernels/skinny_linear.cu), bound by reading the weight. It takes every sum in the
// order of K, and rounds where the operators that it stands for round. cuBLAS does so too where there are many rows; with few it would cut K into
// parts, summed side by side, and a decode step would round the same activation otherwise than training does. So results do not depend on how many
// rows come along, and equal training's bit for bit (test/model/skinny-linear.gpu.test.ts; docs/decisions/0004-one-numeric-truth.md).
// One product is long in K and narrow: down. With few rows one block per tile would take in all of x beside a few rows of W, which costs more than
// reading W. So its sum is taken in two halves of K by two blocks, in float32, added at the end. Training's pass does the same with two products of
// cuBLAS into one float32 sum: linear_residual_halves with many rows.
//
// Everywhere else these are the operators of ATen that they stand for; where a gradient is wanted on CUDA, with the backward of gradient.cc.
#include "skinny_linear.h"

#include <torch/library.h>

#include "cuda_operand.h"
#include "gradient.h"
#include "kernels.h"
#include "pointwise.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;

#ifdef GROVE_CUDA
constexpr int64_t kRows = 128;     // with more, cuBLAS reads the weight as fast
constexpr int64_t kColumns = 128;  // K is a multiple of it
constexpr int64_t kLongSum = 8192, kCut = 256;

bool isOnHopper() {
  static const auto fits = reinterpret_cast<GroveSkinnyLinearFits>(kernelSymbol("grove_skinny_linear_fits"));
  return fits != nullptr && fits() != 0;
}

// The kernel's result [T, n], or an undefined tensor where it does not fit.
Tensor skinny(GroveEpilogue epilogue, const Tensor& x, const Tensor& weight, const Tensor& addend, int64_t n, const GroveLora* lora = nullptr) {
  static const auto launch = reinterpret_cast<GroveSkinnyLinearLauncher>(kernelSymbol("grove_skinny_linear"));
  const bool wantsGradient =
      at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (addend.defined() && addend.requires_grad()));
  if (wantsGradient || x.size(0) == 0 || x.size(0) > kRows || x.size(1) % kColumns != 0 || n % 8 != 0) return {};
  if (!isPlain(x) || !isPlain(weight) || (addend.defined() && !isPlain(addend))) return {};
  c10::cuda::CUDAGuard guard(x.device());
  if (!isOnHopper()) return {};
  Tensor out = at::empty({x.size(0), n}, x.options());
  C10_CUDA_CHECK(static_cast<cudaError_t>(
      launch(epilogue, x.const_data_ptr(), weight.const_data_ptr(), addend.defined() ? addend.const_data_ptr() : nullptr, lora,
             out.mutable_data_ptr(), static_cast<int>(x.size(0)), static_cast<int>(n), static_cast<int>(x.size(1)), c10::cuda::getCurrentCUDAStream().stream())));
  return out;
}

// Whether the sum is one to be halved: that depends on K and on the device, not on the number of rows.
bool isHalved(const Tensor& x, const Tensor& weight, const Tensor& residual) {
  const int64_t K = x.size(1);
  if (K < kLongSum || K % kCut != 0 || residual.numel() == 0 || residual.size(1) % 8 != 0 || !isPlain(x) || !isPlain(weight) || !isPlain(residual))
    return false;
  c10::cuda::CUDAGuard guard(x.device());
  return isOnHopper();
}

// The same sum of two halves as kGroveResidualHalves, for many rows. Undefined where the sum is not one to be halved.
Tensor sumOfHalves(const Tensor& x, const Tensor& weight, const Tensor& residual) {
  static const auto addRounded = reinterpret_cast<GroveAddRoundedLauncher>(kernelSymbol("grove_add_rounded"));
  if (!isHalved(x, weight, residual)) return {};
  const int64_t K = x.size(1), cut = (K / kCut + 1) / 2 * kCut;
  c10::cuda::CUDAGuard guard(x.device());
  if (x.size(0) <= kRows) return skinny(kGroveResidualHalves, x, weight, residual, weight.size(0));
  Tensor sum = at::mm(x.narrow(1, 0, cut), weight.narrow(1, 0, cut).t(), at::kFloat);
  at::addmm_out(sum, sum, x.narrow(1, cut, K - cut), weight.narrow(1, cut, K - cut).t(), at::kFloat);
  Tensor out = at::empty(residual.sizes(), residual.options());
  C10_CUDA_CHECK(static_cast<cudaError_t>(addRounded(sum.const_data_ptr<float>(), residual.const_data_ptr(), out.mutable_data_ptr(), out.numel(),
                                                     c10::cuda::getCurrentCUDAStream().stream())));
  return out;
}
#else
Tensor skinny(GroveEpilogue, const Tensor&, const Tensor&, const Tensor&, int64_t, const GroveLora* = nullptr) { return {}; }
bool isHalved(const Tensor&, const Tensor&, const Tensor&) { return false; }
Tensor sumOfHalves(const Tensor&, const Tensor&, const Tensor&) { return {}; }
#endif

void checkFactors(const char* name, const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), name, ": expected x [T, K], weight [N, K], got ", x.sizes(),
              ", ", weight.sizes());
}

void checkResidual(const Tensor& x, const Tensor& weight, const Tensor& residual) {
  checkFactors("linear_residual", x, weight);
  TORCH_CHECK(residual.dim() == 2 && residual.size(0) == x.size(0) && residual.size(1) == weight.size(0), "linear_residual: expected residual [",
              x.size(0), ", ", weight.size(0), "], got ", residual.sizes());
}

void checkBias(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  checkFactors("linear", x, weight);
  TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weight.size(0)), "linear: expected bias [", weight.size(0), "], got ",
              bias.sizes());
}

void checkGateUp(const Tensor& x, const Tensor& weight) {
  checkFactors("linear_swiglu", x, weight);
  TORCH_CHECK(weight.size(0) % 2 == 0, "linear_swiglu: expected weight [gate | up] with an even number of rows, got ", weight.sizes());
}

// Whether a backward through these is to be recorded that is not ATen's.
bool isTrained(const Tensor& x, const Tensor& weight, const Tensor& addend) {
  return x.is_cuda() && at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (addend.defined() && addend.requires_grad()));
}

Tensor linear_swiglu(const Tensor& x, const Tensor& weight) {
  checkGateUp(x, weight);
  const Tensor out = skinny(kGroveSwiglu, x, weight, Tensor(), weight.size(0) / 2);
  if (out.defined()) return out;
  const Tensor gateUp = at::linear(x, weight);
  if (!gateUp.requires_grad()) return swiglu(gateUp);
  const auto halves = gateUp.chunk(2, 1);
  return at::silu(halves[0]) * halves[1];
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Tensor addend = bias.value_or(Tensor());
  checkBias(x, weight, addend);
  if (isTrained(x, weight, addend)) return trainedLinear(x, weight, bias, std::nullopt);
  const Tensor out = skinny(addend.defined() ? kGroveBias : kGrovePlain, x, weight, addend, weight.size(0));
  return out.defined() ? out : at::linear(x, weight, bias);
}

Tensor linear_residual(const Tensor& x, const Tensor& weight, const Tensor& residual) {
  checkResidual(x, weight, residual);
  if (isTrained(x, weight, residual)) return trainedLinear(x, weight, std::nullopt, residual);
  const Tensor out = skinny(kGroveResidual, x, weight, residual, weight.size(0));
  return out.defined() ? out : at::addmm(residual, x, weight.t());
}

Tensor linear_residual_halves(const Tensor& x, const Tensor& weight, const Tensor& residual) {
  at::NoGradGuard noGrad;
  checkResidual(x, weight, residual);
  const Tensor out = sumOfHalves(x, weight, residual);
  return out.defined() ? out : linear_residual(x, weight, residual);
}

Tensor skinnyLora(GroveEpilogue epilogue, const Tensor& x, const Tensor& weight, const Tensor& addend, const Tensor& t, const Lora& lora) {
  if (epilogue == kGroveSwiglu) checkGateUp(x, weight);
  else if (epilogue == kGroveBias) checkBias(x, weight, addend);
  else checkResidual(x, weight, addend);
  const auto factors = kernelLora(t, lora, weight.size(0));
  if (!factors) return {};
  const int64_t n = epilogue == kGroveSwiglu ? weight.size(0) / 2 : weight.size(0);
  // As sumOfHalves, which decides by K and device alone whether the sum is one to be halved.
  if (epilogue == kGroveResidualHalves && !isHalved(x, weight, addend)) epilogue = kGroveResidual;
  return skinny(epilogue, x, weight, addend, n, &*factors);
}

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd is that of the operators of ATen, or of gradient.cc
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", linear);
  m.def("linear_residual(Tensor x, Tensor weight, Tensor residual) -> Tensor", linear_residual);
  m.def("linear_residual_halves(Tensor x, Tensor weight, Tensor residual) -> Tensor", linear_residual_halves);
  m.def("linear_swiglu(Tensor x, Tensor weight) -> Tensor", linear_swiglu);
}

}  // namespace grove
