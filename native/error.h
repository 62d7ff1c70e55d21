// How C++ failures reach JavaScript: every exported function runs inside `guarded`, which turns any exception into a JavaScript
// Error with a `code` field. Nothing may escape as a C++ exception: that would end the process.
#pragma once

#include <node_api.h>

#include <exception>
#include <string>

#include "progress.h"

namespace grove {

// Codes the TypeScript side knows (src/torch/native-error.ts builds the typed error):
//   FREED      a handle whose tensor or object was freed already
//   ARG_COUNT  too many arguments, or a required one missing
//   ARG_KIND   an argument of the wrong kind, or a number that is no handle
//   OOM        the allocator ran out of memory
//   OP         anything libtorch, CUDA or a kernel of ours reported
struct EngineError : std::exception {
  EngineError(const char* code, std::string message) : code(code), message(std::move(message)) {}
  const char* what() const noexcept override { return message.c_str(); }
  const char* code;
  std::string message;
};

// Throws when a Node-API call failed; `what` names the call.
void check(napi_status status, const char* what);

// Leaves a pending JavaScript exception that describes the C++ exception being handled. Call inside a catch block only.
void throwCurrentToJs(napi_env env) noexcept;

// Wraps `Fn(env, info)` as a napi_callback that cannot leak an exception.
template <napi_value (*Fn)(napi_env, napi_callback_info)>
napi_value guarded(napi_env env, napi_callback_info info) {
  const InAddon inside;
  try {
    return Fn(env, info);
  } catch (...) {
    throwCurrentToJs(env);
    return nullptr;
  }
}

}  // namespace grove
