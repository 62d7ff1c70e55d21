#include "error.h"

#include <c10/util/Exception.h>

#include <new>

namespace grove {

void check(napi_status status, const char* what) {
  if (status != napi_ok) {
    throw EngineError("ARG_KIND", std::string(what) + " failed with Node-API status " + std::to_string(status));
  }
}

namespace {

void throwToJs(napi_env env, const char* code, const char* message) noexcept {
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (!pending) napi_throw_error(env, code, message);
}

}  // namespace

void throwCurrentToJs(napi_env env) noexcept {
  try {
    throw;
  } catch (const EngineError& e) {
    throwToJs(env, e.code, e.what());
  } catch (const c10::OutOfMemoryError& e) {
    throwToJs(env, "OOM", e.what_without_backtrace());
  } catch (const c10::Error& e) {
    // The CPU allocator reports its failure as a plain c10::Error.
    std::string message = e.what_without_backtrace();
    bool oom = message.find("not enough memory") != std::string::npos || message.find("out of memory") != std::string::npos;
    throwToJs(env, oom ? "OOM" : "OP", message.c_str());
  } catch (const std::bad_alloc& e) {
    throwToJs(env, "OOM", e.what());
  } catch (const std::exception& e) {
    throwToJs(env, "OP", e.what());
  } catch (...) {
    throwToJs(env, "OP", "an exception that is no std::exception");
  }
}

}  // namespace grove
