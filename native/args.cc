#include "args.h"

#include <cmath>

namespace grove {

Args::Args(napi_env env, napi_callback_info info, size_t required) : env_(env) {
  check(napi_get_cb_info(env, info, &count_, values_, nullptr, nullptr), "napi_get_cb_info");
  if (count_ < required) {
    throw EngineError("ARG_COUNT", "expected " + std::to_string(required) + " arguments, got " + std::to_string(count_));
  }
}

napi_value Args::value(size_t i) const {
  if (i >= count_ || i >= kMaxArgs) throw EngineError("ARG_COUNT", "argument " + std::to_string(i) + " is missing");
  return values_[i];
}

double Args::number(size_t i) const {
  double result;
  if (napi_get_value_double(env_, value(i), &result) != napi_ok) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " must be a number");
  }
  return result;
}

int64_t Args::integer(size_t i) const {
  double result = number(i);
  if (result != std::floor(result) || std::fabs(result) > 9007199254740992.0) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " must be an integer");
  }
  return static_cast<int64_t>(result);
}

bool Args::boolean(size_t i) const {
  bool result;
  if (napi_get_value_bool(env_, value(i), &result) != napi_ok) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " must be a boolean");
  }
  return result;
}

std::string Args::string(size_t i) const {
  size_t length = 0;
  if (napi_get_value_string_utf8(env_, value(i), nullptr, 0, &length) != napi_ok) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " must be a string");
  }
  std::string result(length, '\0');
  check(napi_get_value_string_utf8(env_, value(i), result.data(), length + 1, &length), "napi_get_value_string_utf8");
  return result;
}

void* Args::typedArray(size_t i, size_t* bytes) const {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env_, value(i), &type, &length, &data, nullptr, nullptr) != napi_ok) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " must be a typed array");
  }
  static const size_t widths[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};  // in the order of napi_typedarray_type
  if (static_cast<size_t>(type) >= sizeof widths / sizeof *widths) {
    throw EngineError("ARG_KIND", "argument " + std::to_string(i) + " is a typed array of an unknown kind");
  }
  *bytes = length * widths[type];
  return data;
}

napi_value makeNumber(napi_env env, double value) {
  napi_value result;
  check(napi_create_double(env, value, &result), "napi_create_double");
  return result;
}

napi_value makeBoolean(napi_env env, bool value) {
  napi_value result;
  check(napi_get_boolean(env, value, &result), "napi_get_boolean");
  return result;
}

napi_value makeString(napi_env env, const std::string& value) {
  napi_value result;
  check(napi_create_string_utf8(env, value.data(), value.size(), &result), "napi_create_string_utf8");
  return result;
}

}  // namespace grove
