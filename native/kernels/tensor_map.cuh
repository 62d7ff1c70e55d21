// How the copy engine (TMA) is told where a matrix of bfloat16 lies in global memory. Host code.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace {

using EncodeTensorMap = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// `map` for bfloat16 values of `sizes`, the innermost dimension first and contiguous; `strides` in bytes of all but that one; copied in boxes of `box`
// values, their rows of 128 bytes swizzled by 128 bytes, zeros where a box reaches behind the end. False where the driver refuses or has no such call.
template <int RANK>
bool describeTensor(CUtensorMap* map, const void* data, const cuuint64_t (&sizes)[RANK], const cuuint64_t (&strides)[RANK - 1],
                    const cuuint32_t (&box)[RANK]) {
  static const EncodeTensorMap encode = [] {  // of the driver's library, which nothing here is linked with
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return status == cudaSuccess ? reinterpret_cast<EncodeTensorMap>(found) : nullptr;
  }();
  if (encode == nullptr) return false;
  cuuint32_t steps[RANK];
  for (cuuint32_t& step : steps) step = 1;
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, RANK, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace
