// Two parts of a transformer layer whose stock form costs time on the CPU or activation memory on the GPU.
//
// grove::rms_norm: x / sqrt(mean(x^2) + eps) * weight. libtorch's CPU backward is a chain of a dozen passes; here it is one loop in
//   float32 and float64. On CUDA the forward in bfloat16 is a kernel of our own, which a decode step can chain (kernels/rms_norm.cu) and which
//   gives training and decode the same bits; its backward is libtorch's. Everywhere else this is aten::rms_norm.
// grove::swiglu_down: residual + (silu(gate) * up) down^T, with gate_up = [gate | up]. Autograd would keep silu(gate), the product and
//   gate_up for the backward, 4 I values a token; this keeps gate_up alone, 2 I, and computes the others again (two cheap passes).

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "cuda_operand.h"
#include "kernels.h"
#include "pointwise.h"
#include "runtime.h"
#include "skinny_linear.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#pragma GCC optimize("O3")  // vector instructions for the loops of rms_norm

namespace grove {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLanes = 16;   // independent sums, so that the compiler may use vector registers without reordering a sum
constexpr int64_t kBlocks = 16;  // of rows: a fixed number, so that the weight's gradient does not depend on the number of threads

// sum_i f(i), i in [0, n)
template <class scalar, class F>
inline scalar lane_sum(int64_t n, F f) {
  std::array<scalar, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += f(i + j);
  }
  for (; i < n; ++i) lanes[0] += f(i);
  scalar sum = 0;
  for (const scalar lane : lanes) sum += lane;
  return sum;
}

// Runs body(block, first row, end row) for kBlocks blocks of rows.
template <class Body>
void each_block(int64_t rows, Body body) {
  const int64_t size = (rows + kBlocks - 1) / kBlocks;
  at::parallel_for(0, kBlocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b, std::min(rows, b * size), std::min(rows, (b + 1) * size));
  });
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, double eps) {
    const Tensor x = input.contiguous(), w = weight.contiguous();
    const int64_t n = x.size(-1), rows = n == 0 ? 0 : x.numel() / n;
    Tensor out = at::empty_like(x), scale = at::empty({rows}, x.options());  // scale = 1 / rms
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
      const scalar_t *xp = x.const_data_ptr<scalar_t>(), *wp = w.const_data_ptr<scalar_t>();
      scalar_t *op = out.mutable_data_ptr<scalar_t>(), *sp = scale.mutable_data_ptr<scalar_t>();
      each_block(rows, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const scalar_t* row = xp + r * n;
          const scalar_t square = lane_sum<scalar_t>(n, [&](int64_t i) { return row[i] * row[i]; });
          const scalar_t s = sp[r] = scalar_t(1) / std::sqrt(square / scalar_t(n) + scalar_t(eps));
          for (int64_t i = 0; i < n; ++i) op[r * n + i] = row[i] * s * wp[i];
        }
      });
    });
    ctx->save_for_backward({x, w, scale});
    return out;
  }

  // With g = dout * w and s = 1 / rms: dx = s g - x s^3 mean(g x), dw = sum over rows of dout x s.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &scale = saved[2];
    const Tensor dout = grads[0].contiguous();
    const int64_t n = x.size(-1), rows = scale.size(0);
    Tensor dx = at::empty_like(x), partial = at::zeros({kBlocks, n}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
      const scalar_t *xp = x.const_data_ptr<scalar_t>(), *wp = w.const_data_ptr<scalar_t>();
      const scalar_t *sp = scale.const_data_ptr<scalar_t>(), *gp = dout.const_data_ptr<scalar_t>();
      scalar_t *dxp = dx.mutable_data_ptr<scalar_t>(), *dwp = partial.mutable_data_ptr<scalar_t>();
      each_block(rows, [&](int64_t block, int64_t begin, int64_t end) {
        scalar_t* dw = dwp + block * n;
        for (int64_t r = begin; r < end; ++r) {
          const scalar_t *row = xp + r * n, *g = gp + r * n, s = sp[r];
          const scalar_t dot = lane_sum<scalar_t>(n, [&](int64_t i) { return g[i] * wp[i] * row[i]; });
          const scalar_t c = dot * s * s * s / scalar_t(n);
          scalar_t* d = dxp + r * n;
          for (int64_t i = 0; i < n; ++i) {
            d[i] = g[i] * wp[i] * s - row[i] * c;
            dw[i] += g[i] * row[i] * s;
          }
        }
      });
    });
    return {dx, partial.sum(0), {}};
  }
};

#ifdef GROVE_CUDA
constexpr int64_t kMostColumns = 8192;  // of kernels/rms_norm.cu

bool rmsNormFits(const Tensor& x, const Tensor& weight) {
  return isPlain(x) && isPlain(weight) && x.numel() > 0 && x.size(-1) % 8 == 0 && x.size(-1) <= kMostColumns &&
         kernelSymbol("grove_rms_norm") != nullptr;
}

struct RmsNormOnCuda : torch::autograd::Function<RmsNormOnCuda> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps) {
    static const auto launch = reinterpret_cast<GroveRmsNormLauncher>(kernelSymbol("grove_rms_norm"));
    c10::cuda::CUDAGuard guard(x.device());
    auto shape = x.sizes().vec();
    shape.back() = 1;
    Tensor out = at::empty_like(x), scale = at::empty(shape, x.options().dtype(at::kFloat));
    C10_CUDA_CHECK(static_cast<cudaError_t>(
        launch(x.const_data_ptr(), weight.const_data_ptr(), out.mutable_data_ptr(), scale.mutable_data_ptr<float>(),
               static_cast<int>(scale.numel()), static_cast<int>(x.size(-1)), static_cast<float>(eps), c10::cuda::getCurrentCUDAStream().stream())));
    ctx->save_for_backward({x, weight, scale});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &scale = saved[2];
    auto [dx, dw] = at::_fused_rms_norm_backward(grads[0].contiguous(), x, weight.sizes(), scale, weight, {true, true});
    return {dx, dw, {}};
  }
};
#endif

// x [..., N], weight [N]
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  TORCH_CHECK(x.dim() > 0 && weight.dim() == 1 && x.size(-1) == weight.size(0), "expected weight [", x.dim() > 0 ? x.size(-1) : 0,
              "], got ", weight.sizes());
#ifdef GROVE_CUDA
  if (rmsNormFits(x, weight)) return RmsNormOnCuda::apply(x, weight, eps);
#endif
  const bool loop = x.is_cpu() && x.scalar_type() == weight.scalar_type() &&
                    (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
  return loop ? RmsNorm::apply(x, weight, eps) : at::rms_norm(x, weight.sizes(), weight, eps);
}

struct SwigluDown : torch::autograd::Function<SwigluDown> {
  static Tensor forward(AutogradContext* ctx, const Tensor& residual, const Tensor& gate_up, const Tensor& down) {
    ctx->save_for_backward({gate_up, down});
    return linear_residual_halves(swiglu(gate_up), down, residual);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate_up = saved[0], &down = saved[1], &dout = grads[0];
    const auto [d_gate_up, product] = swiglu_backward(gate_up, at::mm(dout, down));
    const Tensor d_down = at::mm(dout.t(), product);
    return {dout, d_gate_up, d_down};
  }
};

// residual [T, X], gate_up [T, 2 I], down [X, I]; returns [T, X]
Tensor swiglu_down(const Tensor& residual, const Tensor& gate_up, const Tensor& down) {
  TORCH_CHECK(gate_up.dim() == 2 && down.dim() == 2 && gate_up.size(1) == 2 * down.size(1) && residual.dim() == 2 &&
                  residual.size(0) == gate_up.size(0) && residual.size(1) == down.size(0),
              "expected residual [T, X], gate_up [T, 2 I], down [X, I], got ", residual.sizes(), ", ", gate_up.sizes(), ", ",
              down.sizes());
  return SwigluDown::apply(residual, gate_up, down);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm);  // composite: autograd comes from the Functions above
  m.def("swiglu_down(Tensor residual, Tensor gate_up, Tensor down) -> Tensor", swiglu_down);
}

}  // namespace grove
