// Reading arguments of exported functions and making their results. All checks throw EngineError("ARG_KIND" or "ARG_COUNT").
#pragma once

#include <node_api.h>

#include <cstdint>
#include <string>

#include "error.h"

namespace grove {

constexpr size_t kMaxArgs = 8;

class Args {
 public:
  Args(napi_env env, napi_callback_info info, size_t required);
  double number(size_t i) const;
  int64_t integer(size_t i) const;
  bool boolean(size_t i) const;
  std::string string(size_t i) const;
  // The memory under a typed array; `bytes` is its length.
  void* typedArray(size_t i, size_t* bytes) const;
  napi_env env() const { return env_; }

 private:
  napi_value value(size_t i) const;
  napi_env env_;
  size_t count_ = kMaxArgs;
  napi_value values_[kMaxArgs];
};

napi_value makeNumber(napi_env env, double value);
napi_value makeBoolean(napi_env env, bool value);
napi_value makeString(napi_env env, const std::string& value);

}  // namespace grove
