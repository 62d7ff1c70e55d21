// CUDA as far as the engine needs it: streams, events, graphs, memory statistics. In a build without CUDA every function exists;
// cudaAvailable is false, deviceCount 0, and the rest throws "built without CUDA".
#pragma once

#include <ATen/core/Generator.h>
#include <node_api.h>

namespace grove {

at::Generator newCudaGenerator(c10::Device device, uint64_t seed);

napi_value cudaAvailable(napi_env env, napi_callback_info info);
napi_value cudaDeviceCount(napi_env env, napi_callback_info info);
napi_value cudaSetDevice(napi_env env, napi_callback_info info);
napi_value cudaDeviceName(napi_env env, napi_callback_info info);
napi_value cudaSynchronize(napi_env env, napi_callback_info info);
napi_value cudaMemoryStats(napi_env env, napi_callback_info info);
napi_value cudaResetPeakMemory(napi_env env, napi_callback_info info);
napi_value cudaEmptyCache(napi_env env, napi_callback_info info);

napi_value streamNew(napi_env env, napi_callback_info info);
napi_value streamFree(napi_env env, napi_callback_info info);
napi_value streamSetCurrent(napi_env env, napi_callback_info info);
napi_value streamSynchronize(napi_env env, napi_callback_info info);
napi_value streamWaitEvent(napi_env env, napi_callback_info info);

napi_value eventNew(napi_env env, napi_callback_info info);
napi_value eventFree(napi_env env, napi_callback_info info);
napi_value eventRecord(napi_env env, napi_callback_info info);
napi_value eventSynchronize(napi_env env, napi_callback_info info);
napi_value eventQuery(napi_env env, napi_callback_info info);
napi_value eventElapsed(napi_env env, napi_callback_info info);

napi_value graphNew(napi_env env, napi_callback_info info);
napi_value graphFree(napi_env env, napi_callback_info info);
napi_value graphBegin(napi_env env, napi_callback_info info);
napi_value graphEnd(napi_env env, napi_callback_info info);
napi_value graphReplay(napi_env env, napi_callback_info info);

}  // namespace grove
