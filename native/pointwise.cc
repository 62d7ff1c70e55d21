// Element by element parts of a layer that libtorch would take several passes over memory for. On CUDA in bfloat16 each is one kernel
// (kernels/pointwise.cu); elsewhere they are the operators of ATen, with their autograd.
//
//   swiglu                         silu(gate) * up, silu rounded before the product, as two operators round
//   grove::quick_gelu(x)           x sigmoid(1.702 x), rounded once
//   grove::rotate(x, cos, sin)     x cos + roll(x, D / 2) sin for every head of x [T, N, D], cos and sin [T, 1, D] in x's type or float32 (then the
//                                  sum is in float32); in bfloat16 the first product is rounded, as in the decode kernel
#include "pointwise.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda_operand.h"
#include "kernels.h"
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

#ifdef GROVE_CUDA
template <class Launcher>
Launcher find(const char* name) {
  return reinterpret_cast<Launcher>(kernelSymbol(name));
}

template <class Launcher, class... Arguments>
void run(Launcher launch, const Tensor& on, Arguments... arguments) {
  c10::cuda::CUDAGuard guard(on.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(arguments..., c10::cuda::getCurrentCUDAStream().stream())));
}

bool swigluFits(const Tensor& gate_up) { return isPlain(gate_up) && gate_up.numel() > 0 && gate_up.size(1) % 16 == 0; }

struct QuickGelu : torch::autograd::Function<QuickGelu> {
  static Tensor pass(const Tensor& x, const Tensor& dout) {
    static const auto launch = find<GroveQuickGeluLauncher>("grove_quick_gelu");
    Tensor out = at::empty_like(x);
    run(launch, x, x.const_data_ptr(), dout.defined() ? dout.const_data_ptr() : nullptr, out.mutable_data_ptr(), x.numel());
    return out;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    ctx->save_for_backward({x});
    return pass(x, Tensor());
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {pass(ctx->get_saved_variables()[0], grads[0].contiguous())};
  }
};

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor pass(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward) {
    static const auto launch = find<GroveRotateLauncher>("grove_rotate");
    Tensor out = at::empty(x.sizes(), x.options());
    run(launch, x, x.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(), static_cast<int>(cos.scalar_type() == at::kBFloat16),
        out.mutable_data_ptr(), x.size(0), static_cast<int>(x.size(1)), static_cast<int>(x.size(2)), x.stride(0), static_cast<int>(backward));
    return out;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return pass(x, cos, sin, false);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {pass(grads[0].contiguous(), saved[0], saved[1], true), {}, {}};
  }
};
#endif

Tensor quick_gelu(const Tensor& x) {
#ifdef GROVE_CUDA
  if (isPlain(x) && x.numel() > 0 && x.numel() % 8 == 0 && kernelSymbol("grove_quick_gelu") != nullptr) return QuickGelu::apply(x);
#endif
  return x * at::sigmoid(x * 1.702);
}

}  // namespace

// x's tokens may lie apart, as heads cut from a wider row do.
bool rotateFits(const Tensor& x, const Tensor& cos, const Tensor& sin) {
#ifdef GROVE_CUDA
  const int64_t D = x.size(2);
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.numel() > 0 && D % 16 == 0 && x.stride(2) == 1 && x.stride(1) == D &&
         x.stride(0) % 8 == 0 && isAligned(x) && cos.device() == x.device() && sin.device() == x.device() && cos.is_contiguous() &&
         sin.is_contiguous() && isAligned(cos) && isAligned(sin) && cos.scalar_type() == sin.scalar_type() &&
         (cos.scalar_type() == at::kBFloat16 || cos.scalar_type() == at::kFloat) &&
         kernelSymbol("grove_rotate") != nullptr;
#else
  return false;
#endif
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(x.dim() == 3 && x.size(2) % 2 == 0 && cos.numel() == x.size(0) * x.size(2) && sin.sizes() == cos.sizes(),
              "rotate: expected x [T, N, D], cos and sin [T, 1, D], got ", x.sizes(), ", ", cos.sizes(), ", ", sin.sizes());
#ifdef GROVE_CUDA
  if (rotateFits(x, cos, sin)) return Rotate::apply(x, cos, sin);
#endif
  const Tensor wide = x.to(cos.scalar_type());
  return at::addcmul(wide * cos, wide.roll({x.size(2) / 2}, {2}), sin).to(x.scalar_type());
}

Tensor swiglu(const Tensor& gate_up) {
#ifdef GROVE_CUDA
  static const auto launch = find<GroveSwigluLauncher>("grove_swiglu");
  if (launch != nullptr && swigluFits(gate_up)) {
    Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
    run(launch, gate_up, gate_up.const_data_ptr(), out.mutable_data_ptr(), out.size(0), static_cast<int>(out.size(1)));
    return out;
  }
#endif
  const auto halves = gate_up.detach().chunk(2, 1);
  const Tensor gate = halves[0], up = halves[1];
  if (!gate_up.is_cpu()) return at::silu(gate).mul_(up);
  // Threads take whole rows: libtorch computes the end of a thread's range with other instructions than the rest, and where a row is cut its bits would
  // depend on its place.
  const Tensor product = at::empty(gate.sizes(), gate.options());
  const int64_t rows = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, gate.size(1)));
  at::parallel_for(0, gate.size(0), rows, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Tensor part = product.narrow(0, begin, end - begin);
    at::silu_out(part, gate.narrow(0, begin, end - begin));
    part.mul_(up.narrow(0, begin, end - begin));
  });
  return product;
}

std::pair<Tensor, Tensor> swiglu_backward(const Tensor& gate_up, Tensor d_product) {
  Tensor d_gate_up = at::empty(gate_up.sizes(), gate_up.options());
#ifdef GROVE_CUDA
  static const auto launch = find<GroveSwigluBackwardLauncher>("grove_swiglu_backward");
  if (launch != nullptr && swigluFits(gate_up) && isPlain(d_product)) {
    Tensor product = at::empty(d_product.sizes(), d_product.options());
    run(launch, gate_up, gate_up.const_data_ptr(), d_product.const_data_ptr(), d_gate_up.mutable_data_ptr(), product.mutable_data_ptr(),
        product.size(0), static_cast<int>(product.size(1)));
    return {d_gate_up, product};
  }
#endif
  const auto halves = gate_up.chunk(2, 1), d_halves = d_gate_up.chunk(2, 1);
  Tensor d_gate = d_halves[0], d_up = d_halves[1];
  const Tensor activated = at::silu(halves[0]);
  at::mul_out(d_up, d_product, activated);
  at::silu_backward_out(d_gate, d_product.mul_(halves[1]), halves[0]);
  return {d_gate_up, activated * halves[1]};
}

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above, or from ATen
  m.def("quick_gelu(Tensor x) -> Tensor", quick_gelu);
  m.def("rotate(Tensor x, Tensor cos, Tensor sin) -> Tensor", rotate);
}

}  // namespace grove
