// Launches that may begin while the kernel before them on the stream still runs (programmatic dependent launch, sm_90 on).
//
// A chained kernel calls letNextStart() as early as it likes and waitForPrevious() in every block, before it touches memory that another kernel
// writes: the wait ends when all work before it on the stream has ended, so what stands above it (setting up barriers, fetching weights) overlaps
// with the end of the kernel before. On older devices both do nothing and launches follow each other as ever.
#pragma once

#include <cuda_runtime.h>

namespace {

__device__ __forceinline__ void waitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void letNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether chained launches are compiled in for the current device: a kernel that does not wait must not be let to start early.
inline bool chains() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

// CLUSTER blocks next to each other form a cluster.
template <int CLUSTER = 1, class... Parameters, class... Arguments>
cudaError_t launchChained(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream,
                          const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = CLUSTER;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = !chains() ? 0 : CLUSTER == 1 ? 1 : 2;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace
