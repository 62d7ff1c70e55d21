// A watch over this process's own work. A thread looks whether anything gets on (progress.h, device_marks.h); where nothing has for too long, it says what
// stands still and ends the process. Waiting for other ranks is no standstill: it is theirs to get on. A process that was itself stopped for a while
// (a paused container, a debugger) starts to count anew.
#pragma once

#include <node_api.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace grove {

using Milliseconds = std::chrono::milliseconds;

// How this process stands, for the other ranks.
struct Standing {
  int64_t waiting = -1;   // number of the collective in which it, or its device, waits for other ranks; -1: none
  Milliseconds still{0};  // nothing has got on for so long
};
Standing standing();

// What is done about a standstill besides a message: tells the other ranks. Called once, by the watching thread; the process ends when it returns.
void onStall(std::function<void(const std::string& why)> tell);
// Which collective the device has come to and not ended, if any; asked by a thread of its own, since it may block where the driver does.
void onDeviceWait(std::function<std::optional<int64_t>()> ask);

napi_value stallWatch(napi_env env, napi_callback_info info);
napi_value stallUnwatch(napi_env env, napi_callback_info info);
napi_value stallOperation(napi_env env, napi_callback_info info);
napi_value stallTurn(napi_env env, napi_callback_info info);
napi_value stallPatience(napi_env env, napi_callback_info info);

}  // namespace grove
