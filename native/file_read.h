// Reading files into tensors of any device.
#pragma once

#include <node_api.h>

namespace grove {

napi_value mapRead(napi_env env, napi_callback_info info);

}  // namespace grove
