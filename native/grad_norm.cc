// grove::grad_norm: Euclidean norm of a flat buffer of gradients, float32 or bfloat16 [n], as a float32 scalar on its device. Squares are summed
// in float64 (on CUDA those of 16 bytes in float32 first) in an order that depends on n alone, so a repeated run finds the same norm.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <numeric>

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

constexpr int64_t kChunk = 65536;  // elements that one thread sums

template <class T>
double sumOfSquares(const T* x, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; k++) lanes[k] += static_cast<double>(static_cast<float>(x[i + k])) * static_cast<float>(x[i + k]);
  }
  for (; i < n; i++) lanes[0] += static_cast<double>(static_cast<float>(x[i])) * static_cast<float>(x[i]);
  return std::accumulate(lanes, lanes + 8, 0.0);
}

template <class T>
double normOf(const Tensor& grad) {
  const T* x = grad.const_data_ptr<T>();
  const int64_t n = grad.numel(), chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> partial(chunks);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) partial[i] = sumOfSquares(x + i * kChunk, std::min(kChunk, n - i * kChunk));
  });
  return std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
}

void checkGrad(const Tensor& grad) {
  TORCH_CHECK(grad.scalar_type() == at::kFloat || grad.scalar_type() == at::kBFloat16,
              "grad_norm: expected dtype float32 or bfloat16 of grad, got ", grad.scalar_type());
  TORCH_CHECK(grad.is_contiguous(), "grad_norm: grad must be contiguous");
}

Tensor gradNormCpu(const Tensor& grad) {
  checkGrad(grad);
  const double norm = grad.scalar_type() == at::kFloat ? normOf<float>(grad) : normOf<c10::BFloat16>(grad);
  return at::scalar_tensor(norm, grad.options().dtype(at::kFloat));
}

#ifdef GROVE_CUDA
Tensor gradNormCuda(const Tensor& grad) {
  checkGrad(grad);
  static const auto launch = reinterpret_cast<GroveGradNormLauncher>(kernelSymbol("grove_grad_norm"));
  static const auto scratch = reinterpret_cast<GroveGradNormScratch>(kernelSymbol("grove_grad_norm_scratch"));
  const bool aligned = reinterpret_cast<uintptr_t>(grad.const_data_ptr()) % 16 == 0;
  if (launch == nullptr || scratch == nullptr || !aligned) return at::linalg_vector_norm(grad, 2, std::nullopt, false, at::kFloat);
  c10::cuda::CUDAGuard guard(grad.device());
  Tensor partial = at::empty({scratch(grad.numel())}, grad.options().dtype(at::kDouble));
  Tensor norm = at::empty({}, grad.options().dtype(at::kFloat));
  const int status = launch(grad.const_data_ptr(), grad.scalar_type() == at::kBFloat16, grad.numel(), partial.mutable_data_ptr<double>(),
                            norm.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
  return norm;
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def("grad_norm(Tensor grad) -> Tensor");
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("grad_norm", gradNormCpu);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("grad_norm", gradNormCuda);
}
#endif

}  // namespace grove
