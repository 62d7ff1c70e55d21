#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include "args.h"
#include "cuda.h"
#include "tensor.h"

namespace grove {

SlotTable<at::Generator>& generators() {
  static auto* table = new SlotTable<at::Generator>("generator");
  return *table;
}

// generatorNew(seed, device): handle.
napi_value generatorNew(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  auto seed = static_cast<uint64_t>(args.integer(0));
  c10::Device device = deviceFromCode(args.integer(1));
  at::Generator generator = device.is_cpu() ? at::make_generator<at::CPUGeneratorImpl>(seed) : newCudaGenerator(device, seed);
  return makeNumber(env, generators().add(std::move(generator)));
}

// generatorFree(handle).
napi_value generatorFree(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  generators().remove(args.number(0));
  return nullptr;
}

// generatorGetState(handle): handle of a uint8 CPU tensor.
napi_value generatorGetState(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  return makeNumber(env, tensors().add(generators().at(args.number(0)).get_state()));
}

// generatorSetState(handle, tensor).
napi_value generatorSetState(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  generators().at(args.number(0)).set_state(tensors().at(args.number(1)));
  return nullptr;
}

}  // namespace grove
