// grove::linear_residual: residual + x weight^T.
//
// Where a product has few rows and a long K, cuBLAS cuts K into parts that are summed side by side and added up at the end. With many rows it does not.
// So a decode step and a training pass would round the same activation differently. Here such products take every sum in the order of K
// (kernels/ordered_linear.cu), which gives the bits that cuBLAS gives with many rows (test/model/ordered-linear.gpu.test.ts;
// docs/decisions/0004-one-numeric-truth.md). Everywhere else this is aten::addmm.
#include "ordered_linear.h"

#include <torch/library.h>

#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {

#ifdef GROVE_CUDA
namespace {
// The copy engine takes addresses that are multiples of 16.
bool isAligned(const at::Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0; }
}  // namespace
#endif

at::Tensor linear_residual(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && residual.dim() == 2 && x.size(1) == weight.size(1) && residual.size(0) == x.size(0) &&
                  residual.size(1) == weight.size(0),
              "linear_residual: expected x [T, K], weight [N, K], residual [T, N], got ", x.sizes(), ", ", weight.sizes(), ", ",
              residual.sizes());
#ifdef GROVE_CUDA
  constexpr int64_t kRows = 128, kColumns = 128;  // at most so many rows; K a multiple of kColumns
  const bool wantsGradient = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || residual.requires_grad());
  const bool fits = x.is_cuda() && x.size(0) > 0 && x.size(0) <= kRows && x.size(1) % kColumns == 0 && x.scalar_type() == at::kBFloat16 &&
                    weight.scalar_type() == at::kBFloat16 && residual.scalar_type() == at::kBFloat16 && x.is_contiguous() &&
                    weight.is_contiguous() && residual.is_contiguous() && isAligned(x) && isAligned(weight);
  static const auto launch = reinterpret_cast<GroveOrderedLinearLauncher>(kernelSymbol("grove_ordered_linear"));
  if (fits && !wantsGradient && launch != nullptr) {
    c10::cuda::CUDAGuard guard(x.device());
    at::Tensor out = at::empty(residual.sizes(), residual.options());
    const int status = launch(x.const_data_ptr(), weight.const_data_ptr(), residual.const_data_ptr(), out.mutable_data_ptr(),
                              static_cast<int>(x.size(0)), static_cast<int>(weight.size(0)), static_cast<int>(x.size(1)),
                              c10::cuda::getCurrentCUDAStream().stream());
    if (status != kGroveNotOnThisDevice) {
      C10_CUDA_CHECK(static_cast<cudaError_t>(status));
      return out;
    }
  }
#endif
  return at::addmm(residual, x, weight.t());
}

TORCH_LIBRARY_FRAGMENT(grove, m) {
  m.def("linear_residual(Tensor x, Tensor weight, Tensor residual) -> Tensor", linear_residual);  // composite: autograd is addmm's
}

}  // namespace grove
