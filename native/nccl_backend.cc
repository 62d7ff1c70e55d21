// Collectives on CUDA tensors: c10d's ProcessGroupNCCL, which runs them on a stream of its own, behind what the current stream holds when
// they are started. A collective that outlasts its time limit ends the process: the heartbeat says which ranks have not come to it (heartbeat.h). Where it
// does not, c10d's watchdog names the operation on standard error, a while later.
#include "process_group.h"

#include "device_marks.h"
#include "error.h"

#include <c10/core/DeviceGuard.h>

#include <deque>
#include <mutex>
#include <optional>
#include <vector>

// c10d's header wants those of libraries that nothing else here needs, and small toolkits lack: without them the rest is built all the same.
#if defined(GROVE_CUDA) && __has_include(<nccl.h>) && __has_include(<cublas_v2.h>) && __has_include(<cublasLt.h>) && \
    __has_include(<cusparse.h>) && __has_include(<cusolverDn.h>)
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#define GROVE_NCCL
#endif

namespace grove {

#ifdef GROVE_NCCL

namespace {

// So much longer than a collective's limit c10d's watchdog waits, which knows nothing of the other ranks.
constexpr Milliseconds kAfter(20000);

EngineError failed(const Collective& collective, const Place& place, const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  const std::string reason = torch != nullptr ? torch->what_without_backtrace() : error.what();
  return {"COLLECTIVE", describe(collective, place) + ": " + reason};
}

class NcclPending : public Pending {
 public:
  NcclPending(Collective collective, Place place, c10::intrusive_ptr<c10d::Work> work)
      : collective_(std::move(collective)), place_(place), work_(std::move(work)) {}
  void wait() override {
    try {
      work_->wait();
    } catch (const std::exception& error) {
      throw failed(collective_, place_, error);
    }
  }

 private:
  Collective collective_;  // holds the tensor
  Place place_;
  c10::intrusive_ptr<c10d::Work> work_;
};

class NcclBackend : public Backend {
 public:
  NcclBackend(c10::intrusive_ptr<c10d::Store> store, Place place, Milliseconds timeout) : place_(place) {
    auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    options->timeout = timeout + kAfter;
    group_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), place.rank, place.world, std::move(options));
  }

  // As the group's own end, which would print that Python's destroy_process_group has not been called.
  ~NcclBackend() override {
    try {
      group_->abort();
    } catch (const std::exception&) {  // this rank leaves, whatever became of the others
    }
  }

  std::unique_ptr<Pending> start(Collective collective) override {
    // The first one, and the first of its kind, sets up connections, for which it waits for the others.
    const PeerWait waiting(collective.number);
    const std::optional<Patience> setUp = connected_ ? std::nullopt : std::optional<Patience>(std::in_place);
    const int64_t mark = leaveMark();  // in the current stream, behind which the collective stands
    try {
      auto work = enqueue(collective);
      connected_ = true;
      remember({work, collective.number, operationOf(collective), std::chrono::steady_clock::now() + collective.timeout,
                collective.tensor.device(), mark});
      return std::make_unique<NcclPending>(std::move(collective), place_, std::move(work));
    } catch (const std::exception& error) {
      throw failed(collective, place_, error);
    }
  }

  std::pair<int64_t, std::string> overdue() override {
    while (true) {
      Started oldest;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        // Only then is the device asked, since a graph that is being recorded suffers no questions from other threads.
        if (started_.empty() || std::chrono::steady_clock::now() < started_.front().deadline) return {0, ""};
        oldest = started_.front();
      }
      // Without the lock, since it may wait for what the caller's thread does; at the collective's device, or this thread gets a context at device 0.
      const c10::DeviceGuard guard(oldest.device);
      if (!oldest.work->isCompleted()) return {oldest.number, oldest.operation};
      std::lock_guard<std::mutex> lock(mutex_);
      if (!started_.empty() && started_.front().work == oldest.work) started_.pop_front();
    }
  }

  std::optional<int64_t> deviceWaits() override {
    std::vector<Started> started;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      started.assign(started_.begin(), started_.end());
    }
    for (const Started& one : started) {
      const c10::DeviceGuard guard(one.device);
      if (one.work->isCompleted()) continue;
      return hasPassed(one.mark) ? std::optional<int64_t>(one.number) : std::nullopt;
    }
    return std::nullopt;
  }

 private:
  struct Started {
    c10::intrusive_ptr<c10d::Work> work;
    int64_t number;
    std::string operation;
    std::chrono::steady_clock::time_point deadline;
    at::Device device = at::kCPU;
    int64_t mark = -1;  // has passed when the device has come to it; -1: unknown, and taken for passed
  };

  // Those before it that have ended are forgotten: the caller's thread records no graph meanwhile.
  void remember(Started started) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!started_.empty() && started_.front().work->isCompleted()) started_.pop_front();
    started_.push_back(std::move(started));
  }

  c10::intrusive_ptr<c10d::Work> enqueue(const Collective& collective) {
    at::Tensor flat = collective.tensor.view(-1);
    std::vector<at::Tensor> tensors{flat};
    const int64_t share = flat.numel() / place_.world;
    switch (collective.kind) {
      case CollectiveKind::kSum:
      case CollectiveKind::kMax: {
        c10d::AllreduceOptions options;
        options.reduceOp = collective.kind == CollectiveKind::kMax ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
        options.timeout = collective.timeout + kAfter;
        return group_->allreduce(tensors, options);
      }
      case CollectiveKind::kReduceScatter: {
        at::Tensor own = flat.narrow(0, place_.rank * share, share);
        c10d::ReduceScatterOptions options;
        options.timeout = collective.timeout + kAfter;
        return group_->_reduce_scatter_base(own, flat, options);
      }
      case CollectiveKind::kAllGather: {
        at::Tensor own = flat.narrow(0, place_.rank * share, share);
        c10d::AllgatherOptions options;
        options.timeout = collective.timeout + kAfter;
        return group_->_allgather_base(flat, own, options);
      }
      case CollectiveKind::kBroadcast: {
        c10d::BroadcastOptions options;
        options.rootRank = collective.root;
        options.timeout = collective.timeout + kAfter;
        return group_->broadcast(tensors, options);
      }
      case CollectiveKind::kBarrier:
        break;
    }
    throw EngineError("ARG_KIND", "a barrier has no device");
  }

  Place place_;
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> group_;
  std::mutex mutex_;
  std::deque<Started> started_;  // oldest first
  bool connected_ = false;
};

}  // namespace

std::unique_ptr<Backend> makeNcclBackend(c10::intrusive_ptr<c10d::Store> store, Place place, Milliseconds timeout) {
  return std::make_unique<NcclBackend>(std::move(store), place, timeout);
}

#else

std::unique_ptr<Backend> makeNcclBackend(c10::intrusive_ptr<c10d::Store>, Place, Milliseconds) {
  throw EngineError("OP", "built without NCCL: libtorch with CUDA is needed, nccl.h (it comes with torch's CUDA wheels), and the headers of cuBLAS, cuSPARSE and cuSOLVER");
}

#endif

}  // namespace grove
