// grove::rope_table: what a rotary position embedding turns T tokens by.
//
//   positions [A, T] int64 over A axes, axes [F] int64 (the axis that a frequency follows), frequencies [F] float32 or float64
// Returns cos and sin [T, 1, 2 F] in `dtype` for angles positions[axes[f], t] * frequencies[f], computed in the frequencies' type, the halves
// alike but for the sign of sin's first (src/model/rope.ts says why). On CUDA in bfloat16 one kernel; elsewhere the operators below.
#include <ATen/ATen.h>
#include <torch/library.h>

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

std::tuple<Tensor, Tensor> rope_table(const Tensor& positions, const Tensor& axes, const Tensor& frequencies, at::ScalarType dtype) {
  TORCH_CHECK(positions.dim() == 2 && positions.scalar_type() == at::kLong && axes.dim() == 1 && axes.scalar_type() == at::kLong &&
                  axes.sizes() == frequencies.sizes() && frequencies.is_floating_point(),
              "rope_table: expected positions [A, T] int64, axes [F] int64, frequencies [F] of a floating type, got ", positions.sizes(), ", ",
              axes.sizes(), ", ", frequencies.sizes());
#ifdef GROVE_CUDA
  static const auto launch = reinterpret_cast<GroveRopeTableLauncher>(kernelSymbol("grove_rope_table"));
  const auto fits = [&](const Tensor& x) { return x.device() == positions.device() && x.is_contiguous(); };
  if (launch != nullptr && positions.is_cuda() && dtype == at::kBFloat16 && frequencies.scalar_type() == at::kFloat && fits(axes) &&
      fits(frequencies) && positions.numel() > 0) {
    c10::cuda::CUDAGuard guard(positions.device());
    const Tensor p = positions.contiguous();
    const int64_t tokens = p.size(1), count = axes.size(0);
    const auto options = p.options().dtype(dtype);
    Tensor cosines = at::empty({tokens, 1, 2 * count}, options), sines = at::empty({tokens, 1, 2 * count}, options);
    C10_CUDA_CHECK(static_cast<cudaError_t>(launch(p.const_data_ptr<int64_t>(), axes.const_data_ptr<int64_t>(), frequencies.const_data_ptr<float>(),
                                                   cosines.mutable_data_ptr(), sines.mutable_data_ptr(), static_cast<int>(tokens),
                                                   static_cast<int>(count), c10::cuda::getCurrentCUDAStream().stream())));
    return {cosines, sines};
  }
#endif
  const Tensor angles = positions.to(frequencies.scalar_type()).index_select(0, axes).t() * frequencies;
  const Tensor c = at::cos(angles), s = at::sin(angles);
  return {at::cat({c, c}, 1).to(dtype).unsqueeze(1), at::cat({-s, s}, 1).to(dtype).unsqueeze(1)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {
  m.def("rope_table(Tensor positions, Tensor axes, Tensor frequencies, ScalarType dtype) -> (Tensor, Tensor)", rope_table);
}

}  // namespace grove
