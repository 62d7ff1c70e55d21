// grove::moving_average_: x += share (y - x) for bfloat16 [N], rounded at random, up or down by how near each is. The steps of an average are far smaller
// than the distance of two such numbers and would all be lost to rounding to the nearest.
//
//   x, y [N]          contiguous; elements `begin` to begin + N of a parameter
//   share             in [0, 1]
//   key0, key1, step  what draws are made of, beside the element's place in the parameter: where that is cut does not matter
//
// On CUDA this is our own kernel (kernels/moving_average.cu), with the CPU's bits; without it the CPU does it, on copies.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels.h"
#include "moving_element.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;

GroveMovingAverage checked(const Tensor& x, const Tensor& y, double share, int64_t key0, int64_t key1, int64_t begin, int64_t step) {
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && y.scalar_type() == at::kBFloat16, "moving_average_: expected dtype bfloat16 of x and y, got ",
              x.scalar_type(), ", ", y.scalar_type());
  TORCH_CHECK(x.dim() == 1 && x.sizes() == y.sizes() && x.is_contiguous() && y.is_contiguous() && x.device() == y.device(),
              "moving_average_: expected x and y [N], contiguous and on one device, got ", x.sizes(), ", ", y.sizes());
  TORCH_CHECK(share >= 0 && share <= 1, "moving_average_: share must be between 0 and 1, got ", share);
  TORCH_CHECK(begin >= 0, "moving_average_: begin must be 0 or more, got ", begin);
  return {x.mutable_data_ptr(),         y.const_data_ptr(),           begin, x.numel(), static_cast<float>(share), static_cast<uint32_t>(key0),
          static_cast<uint32_t>(key1), static_cast<uint32_t>(step)};
}

void moveOnHost(const GroveMovingAverage& a) {
  auto* x = static_cast<uint16_t*>(a.x);
  const auto* y = static_cast<const uint16_t*>(a.y);
  const int64_t end = a.begin + a.count;
  at::parallel_for(a.begin / 4, (end + 3) / 4, 16384, [&](int64_t firstQuad, int64_t endQuad) {
    for (int64_t quad = firstQuad; quad < endQuad; quad++) {
      const adamw::Words words = adamw::randomWords(a.key0, a.key1, static_cast<uint64_t>(quad), a.step);
      for (int64_t at = std::max(a.begin, 4 * quad); at < std::min(end, 4 * quad + 4); at++) {
        const int64_t i = at - a.begin;
        x[i] = moving::moved(x[i], y[i], a.share, words.at[at % 4]);
      }
    }
  });
}

Tensor& onCpu(Tensor& x, const Tensor& y, double share, int64_t key0, int64_t key1, int64_t begin, int64_t step) {
  moveOnHost(checked(x, y, share, key0, key1, begin, step));
  return x;
}

#ifdef GROVE_CUDA
Tensor& onCuda(Tensor& x, const Tensor& y, double share, int64_t key0, int64_t key1, int64_t begin, int64_t step) {
  static const auto launch = reinterpret_cast<GroveMovingAverageLauncher>(kernelSymbol("grove_moving_average"));
  const GroveMovingAverage arguments = checked(x, y, share, key0, key1, begin, step);
  if (launch == nullptr) {
    Tensor copy = x.cpu();
    return x.copy_(onCpu(copy, y.cpu(), share, key0, key1, begin, step));
  }
  c10::cuda::CUDAGuard guard(x.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(&arguments, c10::cuda::getCurrentCUDAStream().stream())));
  return x;
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def("moving_average_(Tensor(a!) x, Tensor y, float share, int key0, int key1, int begin, int step) -> Tensor(a!)");
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("moving_average_", onCpu);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("moving_average_", onCuda);
}
#endif

}  // namespace grove
