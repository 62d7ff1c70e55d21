#include "autograd.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "args.h"
#include "tensor.h"

namespace grove {

namespace {

// `count` tensors whose handles start at io[start]; 0 stands for an undefined tensor.
torch::autograd::variable_list tensorsFromIo(int64_t start, int64_t count) {
  if (start < 0 || count < 0 || start + count > static_cast<int64_t>(kIoLength)) {
    throw EngineError("ARG_KIND", "too many tensors in one call");
  }
  torch::autograd::variable_list list;
  list.reserve(static_cast<size_t>(count));
  for (int64_t i = start; i < start + count; i++) {
    list.push_back(io()[i] == 0 ? at::Tensor() : tensors().at(io()[i]));
  }
  return list;
}

}  // namespace

// setGradMode(enabled): the mode before. New threads start with libtorch's default, but only one thread uses the engine.
napi_value setGradMode(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  bool before = at::GradMode::is_enabled();
  at::GradMode::set_enabled(args.boolean(0));
  return makeBoolean(env, before);
}

// setRequiresGrad(handle, requires).
napi_value setRequiresGrad(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  tensors().at(args.number(0)).set_requires_grad(args.boolean(1));
  return nullptr;
}

// getGrad(handle): a new handle of .grad, 0 where there is none.
napi_value getGrad(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  const at::Tensor& grad = tensors().at(args.number(0)).grad();
  return makeNumber(env, grad.defined() ? tensors().add(grad) : 0);
}

// setGrad(handle, grad or 0): backward then adds into this tensor's memory.
napi_value setGrad(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  at::Tensor& tensor = tensors().at(args.number(0));
  if (args.number(1) == 0) {
    tensor.mutable_grad() = at::Tensor();
    return nullptr;
  }
  const at::Tensor& grad = tensors().at(args.number(1));
  if (!grad.sizes().equals(tensor.sizes()) || grad.device() != tensor.device()) {
    throw EngineError("OP", "expected a gradient with the tensor's own shape and device");
  }
  tensor.mutable_grad() = grad;
  return nullptr;
}

// runBackward(count, retainGraph): io = [...outputs, ...gradients], `count` of each; adds into the leaves' .grad.
napi_value runBackward(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  int64_t count = args.integer(0);
  auto outputs = tensorsFromIo(0, count);
  auto gradients = tensorsFromIo(count, count);
  torch::autograd::backward(outputs, gradients, args.boolean(1), /*create_graph=*/false);
  return nullptr;
}

// runGrad(numOutputs, numInputs, retainGraph, allowUnused): io = [...outputs, ...gradients of outputs, ...inputs];
// afterwards io = [...gradients of inputs], 0 where an input was not used.
napi_value runGrad(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  int64_t numOutputs = args.integer(0);
  int64_t numInputs = args.integer(1);
  auto outputs = tensorsFromIo(0, numOutputs);
  auto gradients = tensorsFromIo(numOutputs, numOutputs);
  auto inputs = tensorsFromIo(2 * numOutputs, numInputs);
  auto result = torch::autograd::grad(outputs, inputs, gradients, args.boolean(2), /*create_graph=*/false, args.boolean(3));
  for (size_t i = 0; i < result.size(); i++) io()[i] = result[i].defined() ? tensors().add(result[i]) : 0;
  return nullptr;
}

}  // namespace grove
