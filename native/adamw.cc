// grove::adamw_: one AdamW step of many parameters, over flat buffers of gradients, moments and low bits, in one pass over memory.
//
//   g = grad * min(1, max_norm / (norm + 1e-6))            norm is a tensor: clipping needs no wait for the device
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   p = p - (lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + lr weight_decay p)
//
// Loshchilov and Hutter, arXiv:1711.05101, with decoupled decay as in torch.optim.AdamW. Where norm is not finite nothing is changed.
//
//   params [S]                the weights, all float32 or all bfloat16, contiguous, each a tensor of its own
//   starts [S]                where parameter i begins in the flat buffers: ascending, multiples of 256; the gaps behind parameters hold 0.
//                             Where the buffers are a rank's part of longer ones, the first parameter may begin before them (a negative
//                             start) and the last one end behind them: only elements inside are updated
//   keys [2 S]                words of the key of parameter i's random numbers (adamw_element.h)
//   decays [S]                whether weight_decay counts for it
//   grad [N]                  flat, of the weights' dtype; N, like n below, a multiple of 256
//   low [N] int16             of bfloat16 weights, else None
//   m, v [n]                  elements [begin, begin + n) of the flat moments, begin a multiple of 256: float32, bfloat16 rounded at random,
//                             or uint8 codes with m_scale, v_scale [n / 256] float32 (adamw_element.h); only these elements are updated
//   norm [1] float32          of all gradients
//
// Split master: a bfloat16 parameter comes with `low`, int16, and the two hold an exact float32 master: the parameter is the master
// rounded to bfloat16 (nearest, ties away from zero), `low` is what the rounding took away, in units of the float's last bit:
//   master bits = (parameter bits << 16) + low          (modulo 2^32, low signed)
// So the weights in use are always the best bfloat16 of the master, and 2 + 2 bytes hold what 4 + 2 would. low = 0 starts from a
// bfloat16 checkpoint. A NaN master is stored as the canonical NaN.
//
// Random bits are a function of (key, element of the parameter, step): another layout, device or session changes nothing.
#include "adamw.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove::adamw {

std::pair<size_t, size_t> Update::touched() const {
  const auto first = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
  const auto last = std::lower_bound(starts.begin(), starts.end(), end()) - starts.begin();
  return {static_cast<size_t>(first), static_cast<size_t>(last)};
}

namespace {

using at::Tensor;

Step makeStep(double maxNorm, double lr, double beta1, double beta2, double eps, double weightDecay, int64_t step) {
  TORCH_CHECK(step >= 1 && step <= UINT32_MAX, "adamw_: expected a step of at least 1, got ", step);
  const double t = static_cast<double>(step);
  const auto narrow = [](double x) { return static_cast<float>(x); };
  return {narrow(beta1), narrow(1 - beta1), narrow(beta2), narrow(1 - beta2), narrow(eps), narrow(lr / (1 - std::pow(beta1, t))),
          narrow(1 / std::sqrt(1 - std::pow(beta2, t))), narrow(lr * weightDecay), narrow(maxNorm), static_cast<uint32_t>(step)};
}

void checkParameters(const Update& u) {
  const size_t count = u.params.size();
  TORCH_CHECK(count > 0 && u.starts.size() == count && u.keys.size() == 2 * count && u.decays.size() == count, "adamw_: size mismatch: ", count,
              " params with ", u.starts.size(), " starts, ", u.keys.size(), " keys, ", u.decays.size(), " decays");
  const auto dtype = u.params[0].scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16,
              "adamw_: expected dtype float32 or bfloat16 of params, got ", dtype);
  for (size_t i = 0; i < count; i++) {
    const Tensor& param = u.params[i];
    const int64_t end = i + 1 < count ? u.starts[i + 1] : INT64_MAX;
    TORCH_CHECK(param.scalar_type() == dtype && param.device() == u.grad.device() && param.is_contiguous(),
                "adamw_: params must be contiguous, of one dtype and on one device; parameter ", i, " is not");
    TORCH_CHECK(u.starts[i] % kBlock == 0 && u.starts[i] + param.numel() <= end && u.starts[i] < u.grad.numel(),
                "adamw_: size mismatch: parameter ", i, " of ", param.numel(), " elements does not lie in [", u.starts[i], ", ", end,
                ") of the buffers' ", u.grad.numel());
  }
  TORCH_CHECK(u.starts[0] <= 0, "adamw_: expected the first parameter at 0 or before");
}

void checkArguments(const Update& u) {
  checkParameters(u);
  const auto dtype = u.params[0].scalar_type();
  const bool split = dtype == at::kBFloat16;
  const auto state = u.m.scalar_type();
  const bool coded = state == at::kByte;
  TORCH_CHECK(u.grad.scalar_type() == dtype, "adamw_: the dtype of grad, ", u.grad.scalar_type(), ", does not fit params of ", dtype);
  TORCH_CHECK(split == u.low.has_value(), "adamw_: bfloat16 params need low (int16), any other dtype must come without");
  TORCH_CHECK(state == at::kFloat || state == at::kBFloat16 || coded,
              "adamw_: expected dtype float32, bfloat16 or uint8 of m, got ", state);
  TORCH_CHECK(coded == u.mScale.has_value() && coded == u.vScale.has_value(), "adamw_: moments of uint8 need scales, others must come without");
  TORCH_CHECK(u.begin >= 0 && u.end() <= u.grad.numel() && u.begin % kBlock == 0 && u.m.numel() % kBlock == 0 && u.grad.numel() % kBlock == 0,
              "adamw_: size mismatch: moments of [", u.begin, ", ", u.end(), ") of ", u.grad.numel(), " elements, in blocks of ", kBlock);
  const auto check = [&](const Tensor& tensor, const char* name, at::ScalarType type, int64_t size) {
    TORCH_CHECK(tensor.scalar_type() == type, "adamw_: expected dtype ", type, " of ", name, ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.numel() == size, "adamw_: size mismatch: ", name, " has ", tensor.numel(), " elements, expected ", size);
    TORCH_CHECK(tensor.is_contiguous() && tensor.device() == u.grad.device(), "adamw_: ", name, " must be contiguous and on the device of grad");
  };
  check(u.grad, "grad", dtype, u.grad.numel());
  if (split) check(*u.low, "low", at::kShort, u.grad.numel());
  check(u.m, "m", state, u.m.numel());
  check(u.v, "v", state, u.m.numel());
  if (coded) check(*u.mScale, "m_scale", at::kFloat, u.m.numel() / kBlock);
  if (coded) check(*u.vScale, "v_scale", at::kFloat, u.m.numel() / kBlock);
  check(u.norm, "norm", at::kFloat, 1);
}

#ifdef GROVE_CUDA
// The segments of the parameters that are touched, on the device: copied from pinned memory, so the host goes on.
Tensor segmentTable(const Update& u, size_t first, size_t last) {
  const auto bytes = static_cast<int64_t>((last - first) * sizeof(GroveSegment));
  Tensor host = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  auto* table = reinterpret_cast<GroveSegment*>(host.mutable_data_ptr());
  for (size_t i = first; i < last; i++) {
    table[i - first] = {u.params[i].mutable_data_ptr(), u.starts[i], u.params[i].numel(), static_cast<uint32_t>(u.keys[2 * i]),
                        static_cast<uint32_t>(u.keys[2 * i + 1]), u.decays[i]};
  }
  return host.to(u.grad.device(), /*non_blocking=*/true);
}

void updateCuda(const Update& u) {
  static const auto launch = reinterpret_cast<GroveAdamwLauncher>(kernelSymbol("grove_adamw"));
  if (launch == nullptr) return updateComposed(u);
  c10::cuda::CUDAGuard guard(u.grad.device());
  const auto [first, last] = u.touched();
  const Tensor table = segmentTable(u, first, last);
  const Step& s = u.step;
  const GroveAdamwStep step{s.beta1, s.gain1, s.beta2, s.gain2, s.eps, s.stepSize, s.rsqrtCorrection2, s.decay, s.maxNorm, s.update};
  const auto moments = u.m.scalar_type() == at::kFloat ? kGroveFloat32 : u.m.scalar_type() == at::kBFloat16 ? kGroveBfloat16 : kGroveCodes8;
  const int status = launch(static_cast<const GroveSegment*>(table.const_data_ptr()), static_cast<int>(last - first), u.grad.const_data_ptr(),
                            u.low.has_value() ? u.low->mutable_data_ptr<int16_t>() : nullptr, moments, u.m.mutable_data_ptr(),
                            u.v.mutable_data_ptr(), u.mScale.has_value() ? u.mScale->mutable_data_ptr<float>() : nullptr,
                            u.vScale.has_value() ? u.vScale->mutable_data_ptr<float>() : nullptr, u.norm.const_data_ptr<float>(), u.begin, u.end(),
                            &step, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
}
#endif

void updateFused(const Update& u) {
#ifdef GROVE_CUDA
  if (u.grad.is_cuda()) return updateCuda(u);
#endif
  if (!u.grad.is_cpu()) return updateComposed(u);
  updateCpu(u);
}

template <void (*kUpdate)(const Update&)>
void adamw(at::TensorList params, at::IntArrayRef starts, at::IntArrayRef keys, const c10::List<bool>& decays, const Tensor& grad,
           const std::optional<Tensor>& low, const Tensor& m, const Tensor& v, const std::optional<Tensor>& m_scale,
           const std::optional<Tensor>& v_scale, const Tensor& norm, int64_t begin, double max_norm, double lr, double beta1, double beta2,
           double eps, double weight_decay, int64_t step) {
  const Update update{params, starts, keys, std::vector<uint8_t>(decays.begin(), decays.end()), grad, low, m, v, m_scale, v_scale, norm, begin,
                      makeStep(max_norm, lr, beta1, beta2, eps, weight_decay, step)};
  checkArguments(update);
  if (m.numel() > 0) kUpdate(update);
}

constexpr const char* kSignature =
    "(Tensor(a!)[] params, int[] starts, int[] keys, bool[] decays, Tensor grad, Tensor(b!)? low, Tensor(c!) m, Tensor(d!) v, "
    "Tensor(e!)? m_scale, Tensor(f!)? v_scale, Tensor norm, int begin, float max_norm, float lr, float beta1, float beta2, float eps, "
    "float weight_decay, int step) -> ()";

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def((std::string("adamw_") + kSignature).c_str());
  library.def((std::string("adamw_composed_") + kSignature).c_str());
}
TORCH_LIBRARY_IMPL(grove, CompositeExplicitAutograd, library) {
  library.impl("adamw_", adamw<updateFused>);
  library.impl("adamw_composed_", adamw<updateComposed>);
}

}  // namespace grove::adamw
