// What kernels of our own that read and write 16 bytes at a time take.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace grove {

// Whether x's elements begin at a multiple of 16 bytes.
inline bool isAligned(const at::Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0; }

// Whether x is bfloat16 on a CUDA device, contiguous and aligned.
inline bool isPlain(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.is_contiguous() && isAligned(x);
}

}  // namespace grove
