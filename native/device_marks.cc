#include "device_marks.h"

#ifdef GROVE_CUDA

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

namespace grove {

namespace {

constexpr uint64_t kEvery = 64;  // operators between marks: an event costs the host a microsecond
constexpr size_t kMarks = 64;    // that may be pending; with more the host is that far ahead, and leaves none

// One thread leaves marks (head), another sees them pass (tail): the ring needs no lock.
struct Ring {
  std::array<cudaEvent_t, kMarks> events{};
  std::array<bool, kMarks> passed{};  // of the asking thread
  std::atomic<int64_t> head{0}, tail{0};
  uint64_t count = 0;             // of the asking thread
  bool lost = false;              // the device answers with an error, which the JavaScript thread will hear of too
  std::atomic<int> device{-1};
  std::atomic<bool> paused{false};
  uint64_t enqueued = 0;          // of the leaving thread
};

Ring& ring() {
  static auto* made = new Ring();
  return *made;
}

}  // namespace

void beginMarks(int device) {
  int none = -1;
  ring().device.compare_exchange_strong(none, device);
}

int64_t leaveMark() {
  Ring& marks = ring();
  const int64_t head = marks.head.load(std::memory_order_relaxed);
  if (marks.device.load(std::memory_order_relaxed) < 0 || marks.paused.load(std::memory_order_relaxed)) return -1;
  if (head - marks.tail.load(std::memory_order_acquire) >= static_cast<int64_t>(kMarks)) return -1;
  cudaEvent_t& event = marks.events[static_cast<size_t>(head) % kMarks];
  if (event == nullptr && cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) event = nullptr;
  if (event == nullptr || cudaEventRecord(event, c10::cuda::getCurrentCUDAStream().stream()) != cudaSuccess) {
    (void)cudaGetLastError();  // what is wrong with the device, the next operator says
    return -1;
  }
  marks.head.store(head + 1, std::memory_order_release);
  return head;
}

void noteEnqueued() {
  if (++ring().enqueued % kEvery == 0) leaveMark();
}

void pauseMarks(bool paused) { ring().paused.store(paused, std::memory_order_relaxed); }

MarkCount countMarks() {
  Ring& marks = ring();
  const int device = marks.device.load(std::memory_order_relaxed);
  const int64_t head = marks.head.load(std::memory_order_acquire);
  int64_t tail = marks.tail.load(std::memory_order_relaxed);
  if (marks.lost || device < 0 || head == tail || marks.paused.load(std::memory_order_relaxed)) return {marks.count, false};
  (void)cudaSetDevice(device);  // or this thread would get a context at device 0
  for (int64_t mark = tail; mark < head; mark++) {
    bool& passed = marks.passed[static_cast<size_t>(mark) % kMarks];
    if (passed) continue;
    const cudaError_t answer = cudaEventQuery(marks.events[static_cast<size_t>(mark) % kMarks]);
    if (answer == cudaSuccess) {
      passed = true;
      marks.count++;
      continue;
    }
    (void)cudaGetLastError();
    if (answer != cudaErrorNotReady) {
      marks.lost = true;
      return {marks.count, false};
    }
  }
  // Only then may the places be used again.
  while (tail < head && marks.passed[static_cast<size_t>(tail) % kMarks]) marks.passed[static_cast<size_t>(tail++) % kMarks] = false;
  marks.tail.store(tail, std::memory_order_release);
  return {marks.count, tail < head};
}

bool hasPassed(int64_t mark) {
  Ring& marks = ring();
  if (mark < marks.tail.load(std::memory_order_relaxed)) return true;
  return mark < marks.head.load(std::memory_order_acquire) && marks.passed[static_cast<size_t>(mark) % kMarks];
}

}  // namespace grove

#else

namespace grove {

void beginMarks(int) {}
void noteEnqueued() {}
int64_t leaveMark() { return -1; }
void pauseMarks(bool) {}
MarkCount countMarks() { return {0, false}; }
bool hasPassed(int64_t) { return true; }

}  // namespace grove

#endif  // GROVE_CUDA
