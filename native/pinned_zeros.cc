// grove::pinned_zeros(size, dtype): zeros in page-locked host memory, of exactly the bytes asked for (libtorch's allocator takes the next power of two
// and keeps it). Where there is no CUDA it is plain host memory.
#include <ATen/ATen.h>
#include <torch/library.h>

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <cstring>
#endif

namespace grove {
namespace {

at::Tensor pinnedZeros(at::IntArrayRef size, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
#ifdef GROVE_CUDA
  const size_t bytes = c10::multiply_integers(size) * c10::elementSize(dtype);
  if (bytes > 0 && c10::cuda::device_count() > 0) {
    void* memory = nullptr;
    C10_CUDA_CHECK(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable));
    std::memset(memory, 0, bytes);
    return at::from_blob(memory, size, [](void* data) { C10_CUDA_IGNORE_ERROR(cudaFreeHost(data)); }, options);
  }
#endif
  return at::zeros(size, options);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def("pinned_zeros(int[] size, ScalarType dtype) -> Tensor", pinnedZeros);
}

}  // namespace grove
