// Autograd inside a layer: grad mode, requires_grad, gradients of leaves, backward.
#pragma once

#include <node_api.h>

namespace grove {

napi_value setGradMode(napi_env env, napi_callback_info info);
napi_value setRequiresGrad(napi_env env, napi_callback_info info);
napi_value getGrad(napi_env env, napi_callback_info info);
napi_value setGrad(napi_env env, napi_callback_info info);
napi_value runBackward(napi_env env, napi_callback_info info);
napi_value runGrad(napi_env env, napi_callback_info info);

}  // namespace grove
