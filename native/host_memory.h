// Host memory that JavaScript owns and shares between its threads, filled with the bytes of tensors.
#pragma once

#include <node_api.h>

namespace grove {

napi_value memoryPrepare(napi_env env, napi_callback_info info);
napi_value memoryRelease(napi_env env, napi_callback_info info);
napi_value tensorBytesTo(napi_env env, napi_callback_info info);

}  // namespace grove
