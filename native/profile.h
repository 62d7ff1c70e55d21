// What ran when: libtorch's profiler (Kineto) behind two functions.
#pragma once

#include <node_api.h>

namespace grove {

napi_value profileStart(napi_env env, napi_callback_info info);
napi_value profileStop(napi_env env, napi_callback_info info);

}  // namespace grove
