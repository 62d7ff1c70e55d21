// Collective operations among the processes ("ranks") of a job. Two backends behind one interface: HostBackend for CPU tensors, over the
// job's TCPStore, and NcclBackend for CUDA tensors, over c10d's ProcessGroupNCCL. (libtorch's wheels hold no header of Gloo.)
//
// All ranks start the same collectives in the same order. They run in that order, each backend's beside the caller and beside the other
// backend's; a tensor that takes part belongs to its collective until wait() has returned.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace grove {

using Milliseconds = std::chrono::milliseconds;

enum class CollectiveKind : int64_t { kSum = 0, kMax = 1, kReduceScatter = 2, kAllGather = 3, kBroadcast = 4, kBarrier = 5 };

struct Collective {
  CollectiveKind kind;
  at::Tensor tensor;  // contiguous; undefined in a barrier
  int root;           // of a broadcast
  Milliseconds timeout;
  int64_t number;  // how many the group started before, the same on all ranks
};

struct Place {
  int rank;
  int world;
};

// "all-reduce (sum) #17 of [1024] float32".
std::string operationOf(const Collective& collective);

// "rank 2 of 4, all-reduce (sum) #17 of [1024] float32": the beginning of every message about a collective.
std::string describe(const Collective& collective, const Place& place);

// One that has been started.
class Pending {
 public:
  virtual ~Pending() = default;
  // CPU tensors: returns when the result is there. CUDA tensors: makes the current stream wait, and returns at once.
  // Throws EngineError("COLLECTIVE"), naming rank, operation and sizes.
  virtual void wait() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Pending> start(Collective collective) = 0;
  // Number and description of a collective that has outlasted its limit without anybody having said so; from any thread.
  virtual std::pair<int64_t, std::string> overdue() { return {0, ""}; }
  // Number of the oldest collective that the device has come to and not ended: it waits for other ranks. For the thread that counts marks (device_marks.h).
  virtual std::optional<int64_t> deviceWaits() { return std::nullopt; }
};

// "; " and what is known of another rank, for a message about it; empty where nothing is.
using PeerNote = std::function<std::string(int rank)>;

// `store` is used by the backend's thread alone: a client of its own.
std::unique_ptr<Backend> makeHostBackend(c10::intrusive_ptr<c10d::Store> store, Place place, PeerNote note);

// Throws EngineError("OP") in a build without CUDA, and where libtorch has no NCCL.
std::unique_ptr<Backend> makeNcclBackend(c10::intrusive_ptr<c10d::Store> store, Place place, Milliseconds timeout);

}  // namespace grove
