// One generic call for every ATen and custom operator: the dispatcher's schema says how to read the arguments.
#pragma once

#include <node_api.h>

namespace grove {

napi_value resolveOp(napi_env env, napi_callback_info info);
napi_value callOp(napi_env env, napi_callback_info info);

}  // namespace grove
