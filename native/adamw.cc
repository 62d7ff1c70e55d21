// grove::adamw_: one AdamW step over flat buckets, in one pass over memory.
//
//   g = grad * grad_scale                                  grad_scale is a tensor: clipping needs no wait for the device
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   p = p (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//
// Loshchilov and Hutter, arXiv:1711.05101, with decoupled decay as in torch.optim.AdamW.
//
// Split master: a bfloat16 parameter comes with `low`, int16, and the two hold an exact float32 master: the parameter is the master
// rounded to bfloat16 (nearest, ties away from zero), `low` is what the rounding took away, in units of the float's last bit:
//   master bits = (parameter bits << 16) + low          (modulo 2^32, low signed)
// So the weights in use are always the best bfloat16 of the master, and 2 + 2 bytes hold what 4 + 2 would. low = 0 starts from a
// bfloat16 checkpoint. A NaN master is stored as the canonical NaN.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {

namespace {

struct Step {
  double decay;            // 1 - lr * weight_decay
  double beta1, beta2, eps;
  double stepSize;         // lr / (1 - beta1^t)
  double rsqrtCorrection2;  // 1 / sqrt(1 - beta2^t)
};

Step makeStep(double lr, double beta1, double beta2, double eps, double weightDecay, int64_t step) {
  TORCH_CHECK(step >= 1, "adamw_: expected a step of at least 1, got ", step);
  double t = static_cast<double>(step);
  return {1 - lr * weightDecay, beta1, beta2, eps, lr / (1 - std::pow(beta1, t)), 1 / std::sqrt(1 - std::pow(beta2, t))};
}

void checkArguments(const at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& low, const at::Tensor& m,
                    const at::Tensor& v, const at::Tensor& gradScale) {
  bool split = param.scalar_type() == at::kBFloat16;
  auto state = param.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(split || param.scalar_type() == at::kFloat || param.scalar_type() == at::kDouble,
              "adamw_: expected dtype float32, float64 or bfloat16 of param, got ", param.scalar_type());
  TORCH_CHECK(split == low.has_value(), "adamw_: a bfloat16 param needs low (int16), any other dtype must come without");
  TORCH_CHECK(!split || low->scalar_type() == at::kShort, "adamw_: expected dtype int16 of low, got ", low->scalar_type());
  TORCH_CHECK(m.scalar_type() == state && v.scalar_type() == state, "adamw_: expected dtype ", state, " of m and v");
  TORCH_CHECK(grad.scalar_type() == param.scalar_type() || (state == at::kFloat && grad.scalar_type() == at::kFloat) ||
                  (state == at::kFloat && grad.scalar_type() == at::kBFloat16),
              "adamw_: the dtype of grad, ", grad.scalar_type(), ", does not fit a param of ", param.scalar_type());
  TORCH_CHECK(gradScale.numel() == 1 && gradScale.scalar_type() == at::kFloat, "adamw_: expected dtype float32 and one element of grad_scale");
  auto checkLike = [&](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.numel() == param.numel(), "adamw_: size mismatch: ", name, " has ", tensor.numel(), " elements, param ", param.numel());
    TORCH_CHECK(tensor.is_contiguous(), "adamw_: ", name, " must be contiguous");
    TORCH_CHECK(tensor.device() == param.device(), "adamw_: ", name, " must be on the device of param");
  };
  checkLike(param, "param");
  checkLike(grad, "grad");
  checkLike(m, "m");
  checkLike(v, "v");
  if (low.has_value()) checkLike(*low, "low");
  TORCH_CHECK(gradScale.device() == param.device(), "adamw_: grad_scale must be on the device of param");
}

// ---- CPU

float joinMaster(uint16_t high, int16_t low) {
  uint32_t bits = (static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low));
  float master;
  std::memcpy(&master, &bits, sizeof bits);
  return master;
}

void splitMaster(float master, uint16_t* high, int16_t* low) {
  uint32_t bits;
  std::memcpy(&bits, &master, sizeof bits);
  if (std::isnan(master)) bits = 0x7fc00000u;  // rounding must not carry a NaN into another exponent
  *high = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  *low = static_cast<int16_t>(bits & 0xffffu);
}

// One element; T is float or double.
template <typename T>
T updated(T p, T g, T& m, T& v, const Step& s) {
  m = static_cast<T>(s.beta1) * m + static_cast<T>(1 - s.beta1) * g;
  v = static_cast<T>(s.beta2) * v + static_cast<T>(1 - s.beta2) * g * g;
  T denominator = std::sqrt(v) * static_cast<T>(s.rsqrtCorrection2) + static_cast<T>(s.eps);
  return p * static_cast<T>(s.decay) - static_cast<T>(s.stepSize) * (m / denominator);
}

template <typename T, typename G>
void updateWhole(at::Tensor& param, const at::Tensor& grad, at::Tensor& m, at::Tensor& v, T scale, const Step& step) {
  T* p = param.mutable_data_ptr<T>();
  const G* g = grad.const_data_ptr<G>();
  T* mean = m.mutable_data_ptr<T>();
  T* square = v.mutable_data_ptr<T>();
  at::parallel_for(0, param.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) p[i] = updated<T>(p[i], static_cast<T>(g[i]) * scale, mean[i], square[i], step);
  });
}

template <typename G>
void updateSplit(at::Tensor& param, const at::Tensor& grad, const at::Tensor& low, at::Tensor& m, at::Tensor& v, float scale,
                 const Step& step) {
  auto* high = static_cast<uint16_t*>(param.mutable_data_ptr());
  auto* rest = low.mutable_data_ptr<int16_t>();
  const G* g = grad.const_data_ptr<G>();
  float* mean = m.mutable_data_ptr<float>();
  float* square = v.mutable_data_ptr<float>();
  at::parallel_for(0, param.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float p = updated<float>(joinMaster(high[i], rest[i]), static_cast<float>(g[i]) * scale, mean[i], square[i], step);
      splitMaster(p, &high[i], &rest[i]);
    }
  });
}

void adamwCpu(at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& low, at::Tensor& m, at::Tensor& v,
              const at::Tensor& gradScale, double lr, double beta1, double beta2, double eps, double weightDecay, int64_t step) {
  checkArguments(param, grad, low, m, v, gradScale);
  Step s = makeStep(lr, beta1, beta2, eps, weightDecay, step);
  float scale = *gradScale.const_data_ptr<float>();
  bool narrow = grad.scalar_type() == at::kBFloat16;
  if (param.scalar_type() == at::kDouble) return updateWhole<double, double>(param, grad, m, v, scale, s);
  if (low.has_value() && narrow) return updateSplit<c10::BFloat16>(param, grad, *low, m, v, scale, s);
  if (low.has_value()) return updateSplit<float>(param, grad, *low, m, v, scale, s);
  if (narrow) return updateWhole<float, c10::BFloat16>(param, grad, m, v, scale, s);
  return updateWhole<float, float>(param, grad, m, v, scale, s);
}

// ---- composition of ATen ops: any device, and the oracle of the other two

void adamwComposed(at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& low, at::Tensor& m, at::Tensor& v,
                   const at::Tensor& gradScale, double lr, double beta1, double beta2, double eps, double weightDecay, int64_t step) {
  checkArguments(param, grad, low, m, v, gradScale);
  Step s = makeStep(lr, beta1, beta2, eps, weightDecay, step);
  at::Tensor p = param;
  if (low.has_value()) {
    at::Tensor bits = param.view(at::kShort).to(at::kInt).bitwise_left_shift(16).add_(low->to(at::kInt));
    p = bits.view(at::kFloat);
  }
  at::Tensor g = grad.to(m.scalar_type()).mul(gradScale.to(m.scalar_type()));
  m.mul_(beta1).add_(g, 1 - beta1);
  v.mul_(beta2).addcmul_(g, g, 1 - beta2);
  at::Tensor denominator = v.sqrt().mul_(s.rsqrtCorrection2).add_(eps);
  p.mul_(s.decay).addcdiv_(m, denominator, -s.stepSize);
  if (!low.has_value()) return;
  at::Tensor bits = p.view(at::kInt);
  bits.masked_fill_(p.isnan(), 0x7fc00000);
  low->copy_(bits.bitwise_and(0xffff).to(at::kShort));
  // An arithmetic shift leaves the sign's copies above, which the conversion to int16 drops.
  param.view(at::kShort).copy_(bits.add(0x8000).bitwise_right_shift(16).to(at::kShort));
}

// ---- CUDA

#ifdef GROVE_CUDA
void adamwCuda(at::Tensor& param, const at::Tensor& grad, const std::optional<at::Tensor>& low, at::Tensor& m, at::Tensor& v,
               const at::Tensor& gradScale, double lr, double beta1, double beta2, double eps, double weightDecay, int64_t step) {
  auto launch = reinterpret_cast<GroveAdamwLauncher>(kernelSymbol("grove_adamw"));
  if (launch == nullptr || param.scalar_type() == at::kDouble) {
    return adamwComposed(param, grad, low, m, v, gradScale, lr, beta1, beta2, eps, weightDecay, step);
  }
  checkArguments(param, grad, low, m, v, gradScale);
  if (param.numel() == 0) return;
  Step s = makeStep(lr, beta1, beta2, eps, weightDecay, step);
  c10::cuda::CUDAGuard guard(param.device());
  int status = launch(param.mutable_data_ptr(), grad.const_data_ptr(), grad.scalar_type() == at::kBFloat16 ? 1 : 0,
                      low.has_value() ? low->mutable_data_ptr<int16_t>() : nullptr, m.mutable_data_ptr<float>(),
                      v.mutable_data_ptr<float>(), gradScale.const_data_ptr<float>(), param.numel(), static_cast<float>(s.decay),
                      static_cast<float>(s.beta1), static_cast<float>(1 - s.beta1), static_cast<float>(s.beta2),
                      static_cast<float>(1 - s.beta2), static_cast<float>(s.eps), static_cast<float>(s.stepSize),
                      static_cast<float>(s.rsqrtCorrection2), c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
}
#endif

constexpr const char* kSignature =
    "(Tensor(a!) param, Tensor grad, Tensor(b!)? low, Tensor(c!) m, Tensor(d!) v, Tensor grad_scale, float lr, float beta1, "
    "float beta2, float eps, float weight_decay, int step) -> ()";

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def((std::string("adamw_") + kSignature).c_str());
  library.def((std::string("adamw_composed_") + kSignature).c_str());
}
TORCH_LIBRARY_IMPL(grove, CompositeExplicitAutograd, library) {
  library.impl("adamw_composed_", adamwComposed);
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("adamw_", adamwCpu);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("adamw_", adamwCuda);
}
#endif

}  // namespace grove
