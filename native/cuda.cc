#include "cuda.h"

#include "args.h"
#include "device_marks.h"
#include "tensor.h"

#ifdef GROVE_CUDA

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <memory>

namespace grove {

namespace {

// One stream for all captures: the allocator reuses a block only on the stream it was allocated on, so graphs that share a memory pool
// share memory only if they were captured on one stream.
c10::cuda::CUDAStream captureStream() {
  static c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
  return stream;
}

struct Graph {
  at::cuda::CUDAGraph graph;
  c10::cuda::CUDAStream stream = captureStream();
  std::optional<c10::cuda::CUDAStream> before;  // set while capturing
};

// A CUDA event with timing. Not at::cuda::CUDAEvent: its header wants the headers of cuBLAS and cuSPARSE, which a machine may lack.
struct Event {
  Event() { C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDefault)); }
  ~Event() { C10_CUDA_CHECK_WARN(cudaEventDestroy(event)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

SlotTable<c10::cuda::CUDAStream>& streams() {
  static auto* table = new SlotTable<c10::cuda::CUDAStream>("stream");
  return *table;
}
SlotTable<std::shared_ptr<Event>>& events() {
  static auto* table = new SlotTable<std::shared_ptr<Event>>("event");
  return *table;
}
SlotTable<std::shared_ptr<Graph>>& graphs() {
  static auto* table = new SlotTable<std::shared_ptr<Graph>>("CUDA graph");
  return *table;
}

// The stream of a handle; 0 stands for the current one.
c10::cuda::CUDAStream streamAt(double handle) {
  return handle == 0 ? c10::cuda::getCurrentCUDAStream() : streams().at(handle);
}

void initCuda() { at::globalContext().lazyInitDevice(c10::DeviceType::CUDA); }

}  // namespace

at::Generator newCudaGenerator(c10::Device device, uint64_t seed) {
  initCuda();
  c10::DeviceIndex index = device.has_index() ? device.index() : c10::cuda::current_device();
  at::Generator generator = at::globalContext().defaultGenerator(c10::Device(c10::kCUDA, index)).clone();
  generator.set_current_seed(seed);
  return generator;
}

// cudaAvailable(): a CUDA build that sees a device.
napi_value cudaAvailable(napi_env env, napi_callback_info) {
  return makeBoolean(env, at::globalContext().hasCUDA() && c10::cuda::device_count() > 0);
}

napi_value cudaDeviceCount(napi_env env, napi_callback_info) { return makeNumber(env, c10::cuda::device_count()); }

// cudaSetDevice(index): the current device of this thread.
napi_value cudaSetDevice(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(args.integer(0)));
  return nullptr;
}

// cudaDeviceName(index).
napi_value cudaDeviceName(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  cudaDeviceProp properties;
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, static_cast<int>(args.integer(0))));
  return makeString(env, properties.name);
}

napi_value cudaSynchronize(napi_env, napi_callback_info) {
  c10::cuda::device_synchronize();
  return nullptr;
}

// cudaMemoryStats(): io = [allocated, reserved, peak allocated, peak reserved, free on the device, total], bytes, current device.
napi_value cudaMemoryStats(napi_env, napi_callback_info) {
  initCuda();
  auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(c10::cuda::current_device());
  size_t freeBytes = 0, totalBytes = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&freeBytes, &totalBytes));
  io()[0] = static_cast<double>(stats.allocated_bytes[0].current);
  io()[1] = static_cast<double>(stats.reserved_bytes[0].current);
  io()[2] = static_cast<double>(stats.allocated_bytes[0].peak);
  io()[3] = static_cast<double>(stats.reserved_bytes[0].peak);
  io()[4] = static_cast<double>(freeBytes);
  io()[5] = static_cast<double>(totalBytes);
  return nullptr;
}

napi_value cudaResetPeakMemory(napi_env, napi_callback_info) {
  initCuda();
  c10::cuda::CUDACachingAllocator::resetPeakStats(c10::cuda::current_device());
  return nullptr;
}

napi_value cudaEmptyCache(napi_env, napi_callback_info) {
  initCuda();
  c10::cuda::CUDACachingAllocator::emptyCache();
  return nullptr;
}

// streamNew(highPriority): handle of a stream from libtorch's pool.
napi_value streamNew(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  return makeNumber(env, streams().add(c10::cuda::getStreamFromPool(args.boolean(0))));
}

napi_value streamFree(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  streams().remove(args.number(0));
  return nullptr;
}

// streamSetCurrent(handle or 0 for the default stream): work enqueued from now on goes there.
napi_value streamSetCurrent(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  c10::cuda::setCurrentCUDAStream(args.number(0) == 0 ? c10::cuda::getDefaultCUDAStream() : streams().at(args.number(0)));
  return nullptr;
}

napi_value streamSynchronize(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  streamAt(args.number(0)).synchronize();
  return nullptr;
}

// streamWaitEvent(stream or 0, event): later work of the stream waits for the event, the host does not.
napi_value streamWaitEvent(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  C10_CUDA_CHECK(cudaStreamWaitEvent(streamAt(args.number(0)).stream(), events().at(args.number(1))->event, 0));
  return nullptr;
}

napi_value eventNew(napi_env env, napi_callback_info) {
  initCuda();
  return makeNumber(env, events().add(std::make_shared<Event>()));
}

napi_value eventFree(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  events().remove(args.number(0));
  return nullptr;
}

// eventRecord(event, stream or 0).
napi_value eventRecord(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  C10_CUDA_CHECK(cudaEventRecord(events().at(args.number(0))->event, streamAt(args.number(1)).stream()));
  return nullptr;
}

napi_value eventSynchronize(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  C10_CUDA_CHECK(cudaEventSynchronize(events().at(args.number(0))->event));
  return nullptr;
}

napi_value eventQuery(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  cudaError_t status = cudaEventQuery(events().at(args.number(0))->event);
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();  // "not ready" is an answer: it must not show up as the error of a later call
    return makeBoolean(env, false);
  }
  C10_CUDA_CHECK(status);
  return makeBoolean(env, true);
}

// eventElapsed(start, end): milliseconds between two recorded events that have passed.
napi_value eventElapsed(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  float milliseconds = 0;
  C10_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events().at(args.number(0))->event, events().at(args.number(1))->event));
  return makeNumber(env, milliseconds);
}

napi_value graphNew(napi_env env, napi_callback_info) {
  initCuda();
  return makeNumber(env, graphs().add(std::make_shared<Graph>()));
}

napi_value graphFree(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  graphs().remove(args.number(0));
  return nullptr;
}

// graphBegin(graph, other graph or 0): starts capture on the graph's own stream, in the memory pool of `other` where given. Graphs
// that share a pool must be replayed in the order of their capture. Thread-local mode: other threads (media workers) may call CUDA.
napi_value graphBegin(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Graph& graph = *graphs().at(args.number(0));
  decltype(graph.graph.pool()) pool{0, 0};
  if (args.number(1) != 0) pool = graphs().at(args.number(1))->graph.pool();
  c10::cuda::device_synchronize();
  auto before = c10::cuda::getCurrentCUDAStream();
  c10::cuda::setCurrentCUDAStream(graph.stream);
  pauseMarks(true);
  try {
    graph.graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  } catch (...) {
    pauseMarks(false);
    c10::cuda::setCurrentCUDAStream(before);
    throw;
  }
  graph.before = before;
  return nullptr;
}

// graphEnd(graph): ends capture and returns to the stream before it, also when the capture failed.
napi_value graphEnd(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  Graph& graph = *graphs().at(args.number(0));
  if (!graph.before.has_value()) throw EngineError("OP", "graphEnd without graphBegin");
  auto before = *graph.before;
  graph.before.reset();
  try {
    graph.graph.capture_end();
  } catch (...) {
    pauseMarks(false);
    c10::cuda::setCurrentCUDAStream(before);
    throw;
  }
  pauseMarks(false);
  c10::cuda::setCurrentCUDAStream(before);
  return nullptr;
}

napi_value graphReplay(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  vital.op.store("a CUDA graph", std::memory_order_relaxed);
  graphs().at(args.number(0))->graph.replay();
  noteEnqueued();
  return nullptr;
}

}  // namespace grove

#else  // a build against a libtorch without CUDA

namespace grove {

namespace {
[[noreturn]] napi_value unavailable() {
  throw EngineError("OP", "built without CUDA: the libtorch in use has no libtorch_cuda");
}
}  // namespace

at::Generator newCudaGenerator(c10::Device, uint64_t) {
  unavailable();
}

napi_value cudaAvailable(napi_env env, napi_callback_info) { return makeBoolean(env, false); }
napi_value cudaDeviceCount(napi_env env, napi_callback_info) { return makeNumber(env, 0); }

#define GROVE_UNAVAILABLE(name) \
  napi_value name(napi_env, napi_callback_info) { return unavailable(); }
GROVE_UNAVAILABLE(cudaSetDevice)
GROVE_UNAVAILABLE(cudaDeviceName)
GROVE_UNAVAILABLE(cudaSynchronize)
GROVE_UNAVAILABLE(cudaMemoryStats)
GROVE_UNAVAILABLE(cudaResetPeakMemory)
GROVE_UNAVAILABLE(cudaEmptyCache)
GROVE_UNAVAILABLE(streamNew)
GROVE_UNAVAILABLE(streamFree)
GROVE_UNAVAILABLE(streamSetCurrent)
GROVE_UNAVAILABLE(streamSynchronize)
GROVE_UNAVAILABLE(streamWaitEvent)
GROVE_UNAVAILABLE(eventNew)
GROVE_UNAVAILABLE(eventFree)
GROVE_UNAVAILABLE(eventRecord)
GROVE_UNAVAILABLE(eventSynchronize)
GROVE_UNAVAILABLE(eventQuery)
GROVE_UNAVAILABLE(eventElapsed)
GROVE_UNAVAILABLE(graphNew)
GROVE_UNAVAILABLE(graphFree)
GROVE_UNAVAILABLE(graphBegin)
GROVE_UNAVAILABLE(graphEnd)
GROVE_UNAVAILABLE(graphReplay)
#undef GROVE_UNAVAILABLE

}  // namespace grove

#endif  // GROVE_CUDA
