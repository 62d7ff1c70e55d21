// Byte ranges of files straight into tensors, by several threads: with pread into host memory, through page-locked buffers into device
// memory. Neither maps the file: a map costs a page fault every 4 KiB or more, counts as the process's memory while it lives, and is
// pageable memory, which CUDA copies through a buffer of its own at a fraction of the bus.
#include "file_read.h"

#include <ATen/core/Tensor.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "args.h"
#include "tensor.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace grove {

namespace {

constexpr int64_t kChunk = 4 << 20;  // bytes read at a time

struct Chunk {
  int fd;
  int64_t offset;
  char* target;
  int64_t bytes;
};

void readFully(int fd, int64_t offset, char* target, int64_t bytes) {
  while (bytes > 0) {
    ssize_t got = pread(fd, target, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw EngineError("OP", std::string("reading a file: ") + std::strerror(errno));
    if (got == 0) throw EngineError("OP", "reading a file: it ended early; was it cut off after it was opened?");
    offset += got;
    target += got;
    bytes -= got;
  }
}

// Hands out chunks in order, and lets the kernel begin with those that come soon: a disk wants many requests at a time.
class Queue {
 public:
  Queue(const std::vector<Chunk>& chunks, int threads) : chunks_(chunks), ahead_(2 * static_cast<size_t>(threads)) {}

  const Chunk* next() {
    size_t i = next_.fetch_add(1);
    tick();
    if (i >= chunks_.size()) return nullptr;
    if (i + ahead_ < chunks_.size()) {
      const Chunk& soon = chunks_[i + ahead_];
      posix_fadvise(soon.fd, soon.offset, soon.bytes, POSIX_FADV_WILLNEED);
    }
    return &chunks_[i];
  }

 private:
  const std::vector<Chunk>& chunks_;
  size_t ahead_;
  std::atomic<size_t> next_{0};
};

void readToHost(Queue& queue) {
  while (const Chunk* chunk = queue.next()) readFully(chunk->fd, chunk->offset, chunk->target, chunk->bytes);
}

#ifdef GROVE_CUDA

// What one thread copies with: its own stream, and two page-locked buffers, one of which is filled while the other is on its way.
class Courier {
 public:
  Courier() = default;
  Courier(const Courier&) = delete;
  Courier& operator=(const Courier&) = delete;
  ~Courier() {
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    for (int i = 0; i < 2; i++) {
      if (sent_[i] != nullptr) (void)cudaEventDestroy(sent_[i]);
      if (buffers_[i] != nullptr) (void)cudaFreeHost(buffers_[i]);
    }
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  // On the thread that will send.
  void open(c10::DeviceIndex device, cudaEvent_t ready) {
    c10::cuda::set_device(device);
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    C10_CUDA_CHECK(cudaStreamWaitEvent(stream_, ready, 0));
    for (int i = 0; i < 2; i++) {
      C10_CUDA_CHECK(cudaHostAlloc(&buffers_[i], kChunk, cudaHostAllocDefault));
      C10_CUDA_CHECK(cudaEventCreateWithFlags(&sent_[i], cudaEventDisableTiming));
    }
  }

  void send(const Chunk& chunk) {
    turn_ = 1 - turn_;
    C10_CUDA_CHECK(cudaEventSynchronize(sent_[turn_]));  // returns at once where nothing was sent yet
    readFully(chunk.fd, chunk.offset, static_cast<char*>(buffers_[turn_]), chunk.bytes);
    C10_CUDA_CHECK(cudaMemcpyAsync(chunk.target, buffers_[turn_], static_cast<size_t>(chunk.bytes), cudaMemcpyHostToDevice, stream_));
    C10_CUDA_CHECK(cudaEventRecord(sent_[turn_], stream_));
  }

  void finish() { C10_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
  void* buffers_[2] = {nullptr, nullptr};
  cudaEvent_t sent_[2] = {nullptr, nullptr};
  int turn_ = 0;
};

// A point in the current stream: what was enqueued before may still use the memory that is to be filled.
class Ready {
 public:
  explicit Ready(c10::DeviceIndex device) {
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(event, c10::cuda::getCurrentCUDAStream(device).stream()));
  }
  ~Ready() {
    if (event != nullptr) (void)cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;
};

void readToDevice(Queue& queue, c10::DeviceIndex device, cudaEvent_t ready) {
  Courier courier;
  courier.open(device, ready);
  while (const Chunk* chunk = queue.next()) courier.send(*chunk);
  courier.finish();
}

#endif  // GROVE_CUDA

// Runs `work` on `threads` threads and throws the first exception of any of them.
template <typename F>
void inParallel(int threads, F work) {
  std::exception_ptr failure;
  std::mutex mutex;
  auto guarded = [&] {
    try {
      work();
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(guarded);
  } catch (const std::system_error&) {
    // no more threads may be had: those that there are do all of it
  }
  guarded();
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

// mapRead(count, threads): io = [file, byte offset, tensor] for each read. Fills every tensor (contiguous, all on one device) with the
// bytes from the offset on, as they are. Returns when all of it is there.
napi_value mapRead(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  int64_t count = args.integer(0);
  int64_t threads = args.integer(1);
  if (count < 0 || count > static_cast<int64_t>(kIoLength / 3)) throw EngineError("ARG_KIND", "too many reads in one call");
  if (threads < 1 || threads > 64) throw EngineError("ARG_KIND", "a read takes 1 to 64 threads");
  std::vector<Chunk> chunks;
  c10::Device device(c10::kCPU);
  for (int64_t i = 0; i < count; i++) {
    const OpenFile file = openFileOf(io()[3 * i]);
    double offset = io()[3 * i + 1];
    at::Tensor& tensor = tensors().at(io()[3 * i + 2]);
    if (!tensor.is_contiguous()) throw EngineError("ARG_KIND", "a file is read into contiguous tensors only");
    if (i == 0) device = tensor.device();
    if (tensor.device() != device) throw EngineError("ARG_KIND", "the tensors of one read are on one device");
    auto bytes = static_cast<int64_t>(tensor.nbytes());
    if (!(offset >= 0 && offset + static_cast<double>(bytes) <= static_cast<double>(file.bytes))) {
      throw EngineError("OP", std::to_string(bytes) + " bytes from " + std::to_string(offset) + " on lie outside the file of " +
                                  std::to_string(file.bytes) + " bytes");
    }
    auto* target = static_cast<char*>(tensor.mutable_data_ptr());
    auto from = static_cast<int64_t>(offset);
    for (int64_t done = 0; done < bytes; done += kChunk) {
      chunks.push_back({file.fd, from + done, target + done, std::min(kChunk, bytes - done)});
    }
  }
  if (chunks.empty()) return nullptr;
  auto workers = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(chunks.size())));
  Queue queue(chunks, workers);
  if (device.is_cpu()) {
    inParallel(workers, [&] { readToHost(queue); });
    return nullptr;
  }
#ifdef GROVE_CUDA
  c10::DeviceIndex index = device.index();
  Ready ready(index);
  inParallel(workers, [&] { readToDevice(queue, index, ready.event); });
  return nullptr;
#else
  throw EngineError("OP", "built without CUDA");
#endif
}

}  // namespace grove
