// Process-wide matters: threads, versions, the library of our own CUDA kernels, and the C++ side of the dispatch benchmark.
#pragma once

#include <node_api.h>

namespace grove {

// Address of an exported function of libgrove_kernels.so, or null where the library is not loaded or lacks it.
void* kernelSymbol(const char* name);

napi_value loadKernels(napi_env env, napi_callback_info info);
napi_value setNumThreads(napi_env env, napi_callback_info info);
napi_value setDeterministic(napi_env env, napi_callback_info info);
napi_value versions(napi_env env, napi_callback_info info);
napi_value listOps(napi_env env, napi_callback_info info);
napi_value benchAdd(napi_env env, napi_callback_info info);

}  // namespace grove
