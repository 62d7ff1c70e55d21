#include "host_memory.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "args.h"
#include "tensor.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace grove {

namespace {

constexpr int64_t kGrain = 4 << 20;  // bytes that one thread touches or copies at a time

}  // namespace

// memoryPrepare(typedArray): page-locks fresh memory, so that a device copies into it behind the caller's back. It is touched first, by several
// threads: the driver would do that with one. Must be undone by memoryRelease before the memory goes.
napi_value memoryPrepare(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  size_t bytes = 0;
  auto* data = static_cast<char*>(args.typedArray(0, &bytes));
  if (bytes == 0) return nullptr;
#ifdef GROVE_CUDA
  const Patience patience;
  at::parallel_for(0, static_cast<int64_t>(bytes), kGrain,
                   [&](int64_t begin, int64_t end) { std::memset(data + begin, 0, static_cast<size_t>(end - begin)); });
  C10_CUDA_CHECK(cudaHostRegister(data, bytes, cudaHostRegisterPortable));
  return nullptr;
#else
  (void)data;
  throw EngineError("OP", "built without CUDA");
#endif
}

// memoryRelease(typedArray): undoes the page lock.
napi_value memoryRelease(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  size_t bytes = 0;
  void* data = args.typedArray(0, &bytes);
  if (bytes == 0) return nullptr;
#ifdef GROVE_CUDA
  C10_CUDA_CHECK(cudaHostUnregister(data));
  return nullptr;
#else
  (void)data;
  throw EngineError("OP", "built without CUDA");
#endif
}

// tensorBytesTo(handle, from, typedArray): fills the array with the bytes of a contiguous tensor from byte `from` on. From the CPU at
// once; from a device in the order of the current stream, without waiting where the array is page-locked.
napi_value tensorBytesTo(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  const at::Tensor& tensor = tensors().at(args.number(0));
  int64_t from = args.integer(1);
  size_t length = 0;
  auto* target = static_cast<char*>(args.typedArray(2, &length));
  auto bytes = static_cast<int64_t>(length);
  if (!tensor.is_contiguous()) throw EngineError("ARG_KIND", "bytes are taken of contiguous tensors only");
  auto available = static_cast<int64_t>(tensor.nbytes());
  if (from < 0 || from > available || bytes > available - from) {
    throw EngineError("ARG_KIND", std::to_string(bytes) + " bytes from " + std::to_string(from) + " on are not in a tensor of " +
                                      std::to_string(available));
  }
  if (bytes == 0) return nullptr;
  const auto* source = static_cast<const char*>(tensor.const_data_ptr()) + from;
  if (tensor.is_cpu()) {
    at::parallel_for(0, bytes, kGrain, [&](int64_t begin, int64_t end) {
      std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
    });
    return nullptr;
  }
#ifdef GROVE_CUDA
  c10::cuda::CUDAGuard guard(tensor.device());
  auto stream = c10::cuda::getCurrentCUDAStream(tensor.device().index());
  C10_CUDA_CHECK(cudaMemcpyAsync(target, source, length, cudaMemcpyDeviceToHost, stream.stream()));
  return nullptr;
#else
  throw EngineError("OP", "built without CUDA");
#endif
}

}  // namespace grove
