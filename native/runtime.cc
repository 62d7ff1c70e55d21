#include "runtime.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/version.h>

#include <chrono>

#include "args.h"
#include "tensor.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace grove {

namespace {

void* kernelLibrary = nullptr;

void synchronize(c10::Device device) {
#ifdef GROVE_CUDA
  if (device.is_cuda()) c10::cuda::device_synchronize();
#else
  (void)device;
#endif
}

}  // namespace

void* kernelSymbol(const char* name) { return kernelLibrary == nullptr ? nullptr : dlsym(kernelLibrary, name); }

// loadKernels(path): opens libgrove_kernels.so for the rest of the process.
napi_value loadKernels(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  std::string path = args.string(0);
  if (kernelLibrary == nullptr) kernelLibrary = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (kernelLibrary == nullptr) throw EngineError("OP", dlerror());
  return nullptr;
}

// setNumThreads(n): intra-op threads of CPU ops.
napi_value setNumThreads(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  int64_t threads = args.integer(0);
  if (threads < 1 || threads > 4096) throw EngineError("ARG_KIND", "expected 1 to 4096 threads");
  at::set_num_threads(static_cast<int>(threads));
  return nullptr;
}

// setDeterministic(on): operators whose sums have no fixed order take one that has, or throw; our own kernels ask for the same flag.
napi_value setDeterministic(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  at::globalContext().setDeterministicAlgorithms(args.boolean(0), /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);  // nothing here reads what it has not written
  return nullptr;
}

// versions(): {torch, cudaBuild, threads}.
napi_value versions(napi_env env, napi_callback_info) {
  napi_value result;
  check(napi_create_object(env, &result), "napi_create_object");
  napi_set_named_property(env, result, "torch", makeString(env, TORCH_VERSION));
#ifdef GROVE_CUDA
  napi_set_named_property(env, result, "cudaBuild", makeBoolean(env, at::globalContext().hasCUDA()));
#else
  napi_set_named_property(env, result, "cudaBuild", makeBoolean(env, false));
#endif
  napi_set_named_property(env, result, "kernels", makeBoolean(env, kernelLibrary != nullptr));
  napi_set_named_property(env, result, "threads", makeNumber(env, at::get_num_threads()));
  return result;
}

// listOps(part): full names of all registered operators whose name contains `part`.
napi_value listOps(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  std::string part = args.string(0);
  napi_value names;
  check(napi_create_array(env, &names), "napi_create_array");
  uint32_t count = 0;
  for (const c10::OperatorName& op : c10::Dispatcher::singleton().getAllOpNames()) {
    std::string name = c10::toString(op);
    if (name.find(part) == std::string::npos) continue;
    check(napi_set_element(env, names, count++, makeString(env, name)), "napi_set_element");
  }
  return names;
}

// benchAdd(a, b, calls, boxed): microseconds a call of at::add from C++, directly or through callBoxed; the host's time until all
// calls are enqueued. The yardstick of bench/dispatch.ts.
napi_value benchAdd(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  at::Tensor a = tensors().at(args.number(0));
  at::Tensor b = tensors().at(args.number(1));
  int64_t calls = args.integer(2);
  bool boxed = args.boolean(3);
  auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::add", "Tensor");
  torch::jit::Stack stack;
  synchronize(a.device());
  auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < calls; i++) {
    if (boxed) {
      stack.emplace_back(a);
      stack.emplace_back(b);
      stack.emplace_back(static_cast<int64_t>(1));
      op.callBoxed(stack);
      stack.clear();
    } else {
      at::Tensor sum = at::add(a, b);
    }
  }
  auto end = std::chrono::steady_clock::now();
  synchronize(a.device());
  return makeNumber(env, std::chrono::duration<double, std::micro>(end - start).count() / static_cast<double>(calls));
}

}  // namespace grove
