// The RMS norm on the CPU in float32 and float64, forward and backward in one pass over x each.
#include "rms_norm_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>

#pragma GCC optimize("O3")  // vector instructions for the loops

namespace grove {
namespace {

using at::Tensor;

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

}  // namespace

std::pair<Tensor, Tensor> rmsNormCpu(const Tensor& input, const Tensor& weight, double eps) {
  const Tensor x = input.contiguous(), w = weight.contiguous();
  const int64_t n = x.size(-1), rows = n == 0 ? 0 : x.numel() / n;
  Tensor out = at::empty_like(x), scale = at::empty({rows}, x.options());
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
  return {out, scale};
}

// With g = dout * w and s = 1 / rms: dx = s g - x s^3 mean(g x), dw = sum over rows of dout x s.
std::pair<Tensor, Tensor> rmsNormCpuBackward(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& gradient) {
  const Tensor x = input.contiguous(), w = weight.contiguous(), dout = gradient.contiguous();
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
  return {dx, partial.sum(0)};
}

}  // namespace grove
