// Groups of processes as JavaScript sees them: opened, collectives started and waited for, a few bytes left in the job's store.
#pragma once

#include <node_api.h>

namespace grove {

napi_value groupOpen(napi_env env, napi_callback_info info);
napi_value groupClose(napi_env env, napi_callback_info info);
napi_value collectiveStart(napi_env env, napi_callback_info info);
napi_value collectiveWait(napi_env env, napi_callback_info info);
napi_value groupOperation(napi_env env, napi_callback_info info);
napi_value groupFail(napi_env env, napi_callback_info info);
napi_value storeSet(napi_env env, napi_callback_info info);
napi_value storeAdd(napi_env env, napi_callback_info info);
napi_value storeTake(napi_env env, napi_callback_info info);
napi_value endWithParent(napi_env env, napi_callback_info info);

}  // namespace grove
