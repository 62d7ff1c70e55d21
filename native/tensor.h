// Tensors as JavaScript sees them: handles into one table, metadata, copies in and out, memory-mapped files.
#pragma once

#include <ATen/core/Tensor.h>
#include <node_api.h>

#include "slots.h"

namespace grove {

// All live tensors. Never destroyed: at exit CUDA may be gone before static destructors run.
SlotTable<at::Tensor>& tensors();

// The exchange buffer: a Float64Array shared with JavaScript, through which calls pass handles, numbers and lists in both directions
// without a Node-API call a value. One thread uses the engine, and no call runs inside another.
constexpr size_t kIoLength = 65536;
extern double ioBuffer[kIoLength];
inline double* io() { return ioBuffer; }

// A device as one number: 0 CPU, 1 the current CUDA device, 2 + k CUDA device k.
c10::Device deviceFromCode(int64_t code);
double codeFromDevice(c10::Device device);
// An at::ScalarType from its number; refuses numbers that are none.
at::ScalarType scalarTypeFromCode(int64_t code);

// What mapOpen opened: valid as long as the handle is.
struct OpenFile {
  int fd;
  size_t bytes;
};
OpenFile openFileOf(double handle);

napi_value exchangeBuffer(napi_env env, napi_callback_info info);
napi_value tensorMeta(napi_env env, napi_callback_info info);
napi_value tensorFree(napi_env env, napi_callback_info info);
napi_value tensorIsLive(napi_env env, napi_callback_info info);
napi_value tensorItem(napi_env env, napi_callback_info info);
napi_value tensorRead(napi_env env, napi_callback_info info);
napi_value tensorFromArray(napi_env env, napi_callback_info info);
napi_value liveTensors(napi_env env, napi_callback_info info);
napi_value mapOpen(napi_env env, napi_callback_info info);
napi_value mapTensor(napi_env env, napi_callback_info info);
napi_value mapClose(napi_env env, napi_callback_info info);

}  // namespace grove
