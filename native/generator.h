// Seeded random generators, one stream of numbers each, for the CPU and for CUDA devices.
#pragma once

#include <ATen/core/Generator.h>
#include <node_api.h>

#include "slots.h"

namespace grove {

SlotTable<at::Generator>& generators();

napi_value generatorNew(napi_env env, napi_callback_info info);
napi_value generatorFree(napi_env env, napi_callback_info info);
napi_value generatorGetState(napi_env env, napi_callback_info info);
napi_value generatorSetState(napi_env env, napi_callback_info info);

}  // namespace grove
