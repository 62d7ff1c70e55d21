// Collectives on CPU tensors: ranks exchange bytes through the job's store, each message under a key of its own that its reader deletes.
// For tests, small models and the few numbers that ranks tell each other; not built for speed.
//
// Sums are taken in the order of the ranks, in float64 for floating types, by one rank for each piece, and rounded once: every rank has the
// same bits, whichever message came first.
#include <ATen/Dispatch.h>
#include <c10/util/Exception.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "error.h"
#include "process_group.h"

namespace grove {

namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kMessage = 4 << 20;  // bytes a key; the store refuses values above 8 MiB

// What stands before the data of every message, so that ranks that have lost step notice it.
struct Header {
  int64_t kind;
  int64_t dtype;
  int64_t numel;
};

struct Piece {
  int64_t begin;
  int64_t count;
};

template <typename T>
void reducePieces(T* into, const std::vector<Bytes>& others, const std::vector<bool>& isOther, int64_t count, bool max) {
  using Sum = std::conditional_t<std::is_integral_v<T>, int64_t, double>;
  for (int64_t i = 0; i < count; i++) {
    Sum result = 0;
    for (size_t rank = 0; rank < others.size(); rank++) {
      const T* values = isOther[rank] ? reinterpret_cast<const T*>(others[rank].data()) : into;
      const Sum value = static_cast<Sum>(values[i]);
      // `!(value <= result)` keeps a NaN, from whichever rank it comes.
      if (rank == 0) result = value;
      else if (!max) result += value;
      else if (result == result && !(value <= result)) result = value;
    }
    into[i] = static_cast<T>(result);
  }
}

class HostWork {
 public:
  HostWork(c10d::Store& store, const Collective& collective, const Place& place, const PeerNote& note)
      : store_(store), collective_(collective), place_(place), note_(note), deadline_(std::chrono::steady_clock::now() + collective.timeout) {}

  void run() {
    switch (collective_.kind) {
      case CollectiveKind::kSum:
      case CollectiveKind::kMax:
        reduce(everyPiece(), collective_.kind == CollectiveKind::kMax);
        return gather(everyPiece());
      case CollectiveKind::kReduceScatter:
        return reduce(everyPiece(), false);
      case CollectiveKind::kAllGather:
        return gather(everyPiece());
      case CollectiveKind::kBroadcast:
        return broadcast();
      case CollectiveKind::kBarrier:
        return barrier();
    }
  }

 private:
  // Piece r is rank r's: equal ones, the last ones shorter where the elements do not divide.
  std::vector<Piece> everyPiece() const {
    const int64_t size = collective_.tensor.numel();
    const int64_t share = (size + place_.world - 1) / place_.world;
    std::vector<Piece> pieces;
    for (int64_t rank = 0; rank < place_.world; rank++) {
      const int64_t begin = std::min(size, rank * share);
      pieces.push_back({begin, std::min(share, size - begin)});
    }
    return pieces;
  }

  // Each rank's piece becomes the sum, or the maximum, of what all ranks hold there; the others' pieces stay as they are.
  void reduce(const std::vector<Piece>& pieces, bool max) {
    for (int to = 0; to < place_.world; to++) {
      if (to != place_.rank) send("r", to, at(pieces[to]), bytesOf(pieces[to]));
    }
    const Piece& own = pieces[place_.rank];
    std::vector<Bytes> received(place_.world);
    std::vector<bool> isOther(place_.world);
    for (int from = 0; from < place_.world; from++) {
      isOther[from] = from != place_.rank;
      if (isOther[from]) received[from] = receive("r", from, bytesOf(own));
    }
    void* into = at(own);
    AT_DISPATCH_ALL_TYPES_AND(at::kBFloat16, collective_.tensor.scalar_type(), "collective", [&] {
      reducePieces(static_cast<scalar_t*>(into), received, isOther, own.count, max);
    });
  }

  // Every rank's piece becomes what that rank holds there.
  void gather(const std::vector<Piece>& pieces) {
    const Piece& own = pieces[place_.rank];
    for (int to = 0; to < place_.world; to++) {
      if (to != place_.rank) send("g", to, at(own), bytesOf(own));
    }
    for (int from = 0; from < place_.world; from++) {
      if (from != place_.rank) copyIn(pieces[from], receive("g", from, bytesOf(pieces[from])));
    }
  }

  void broadcast() {
    const Piece all{0, collective_.tensor.numel()};
    if (place_.rank != collective_.root) return copyIn(all, receive("b", collective_.root, bytesOf(all)));
    for (int to = 0; to < place_.world; to++) {
      if (to != place_.rank) send("b", to, at(all), bytesOf(all));
    }
  }

  void barrier() {
    for (int to = 0; to < place_.world; to++) {
      if (to != place_.rank) send("w", to, nullptr, 0);
    }
    for (int from = 0; from < place_.world; from++) {
      if (from != place_.rank) receive("w", from, 0);
    }
  }

  char* at(const Piece& piece) const {
    return static_cast<char*>(collective_.tensor.mutable_data_ptr()) + piece.begin * collective_.tensor.element_size();
  }

  size_t bytesOf(const Piece& piece) const { return static_cast<size_t>(piece.count * collective_.tensor.element_size()); }

  void copyIn(const Piece& piece, const Bytes& bytes) const {
    if (!bytes.empty()) std::memcpy(at(piece), bytes.data(), bytes.size());
  }

  std::string key(const char* phase, int from, int to, size_t message) const {
    return std::to_string(collective_.number) + phase + std::to_string(from) + ">" + std::to_string(to) + "." + std::to_string(message);
  }

  Header header() const {
    const bool empty = !collective_.tensor.defined();
    return {static_cast<int64_t>(collective_.kind), empty ? -1 : static_cast<int64_t>(collective_.tensor.scalar_type()),
            empty ? 0 : collective_.tensor.numel()};
  }

  void send(const char* phase, int to, const void* data, size_t bytes) {
    const Header head = header();
    for (size_t message = 0, done = 0; message == 0 || done < bytes; message++) {
      const size_t count = std::min(kMessage, bytes - done);
      Bytes value(sizeof(head) + count);
      std::memcpy(value.data(), &head, sizeof(head));
      if (count > 0) std::memcpy(value.data() + sizeof(head), static_cast<const char*>(data) + done, count);
      store_.set(key(phase, place_.rank, to, message), value);
      tick();
      done += count;
    }
  }

  Bytes receive(const char* phase, int from, size_t bytes) {
    Bytes result(bytes);
    for (size_t message = 0, done = 0; message == 0 || done < bytes; message++) {
      const std::string name = key(phase, from, place_.rank, message);
      const Bytes value = waitFor(name, from);
      const size_t count = std::min(kMessage, bytes - done);
      checkHeader(value, count, from);
      if (count > 0) std::memcpy(result.data() + done, value.data() + sizeof(Header), count);
      store_.deleteKey(name);
      tick();
      done += count;
    }
    return result;
  }

  Bytes waitFor(const std::string& name, int from) {
    const auto left = std::chrono::duration_cast<Milliseconds>(deadline_ - std::chrono::steady_clock::now());
    const auto limit = std::max(left, Milliseconds(1));
    try {
      store_.wait({name}, limit);
      return store_.get(name);
    } catch (const c10::DistStoreError&) {
      throw EngineError("COLLECTIVE", describe(collective_, place_) + ": rank " + std::to_string(from) + " has not come to it within " +
                                          std::to_string(collective_.timeout.count()) + " ms" + note_(from));
    }
  }

  void checkHeader(const Bytes& value, size_t data, int from) const {
    Header theirs;
    if (value.size() < sizeof(theirs)) throw EngineError("COLLECTIVE", describe(collective_, place_) + ": a message was cut off");
    std::memcpy(&theirs, value.data(), sizeof(theirs));
    const Header ours = header();
    if (theirs.kind == ours.kind && theirs.dtype == ours.dtype && theirs.numel == ours.numel && value.size() == sizeof(theirs) + data) return;
    throw EngineError("COLLECTIVE", describe(collective_, place_) + ": rank " + std::to_string(from) + " is at another one (kind " +
                                        std::to_string(theirs.kind) + ", " + std::to_string(theirs.numel) +
                                        " elements): the ranks have lost step");
  }

  c10d::Store& store_;
  const Collective& collective_;
  const Place& place_;
  const PeerNote& note_;
  const std::chrono::steady_clock::time_point deadline_;
};

// What the thread and whoever waits share.
struct Task {
  explicit Task(Collective collective) : collective(std::move(collective)) {}
  Collective collective;
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  std::exception_ptr failure;
};

class HostPending : public Pending {
 public:
  explicit HostPending(std::shared_ptr<Task> task) : task_(std::move(task)) {}
  void wait() override {
    const PeerWait waiting(task_->collective.number);
    std::unique_lock<std::mutex> lock(task_->mutex);
    task_->ended.wait(lock, [&] { return task_->done; });
    if (task_->failure) std::rethrow_exception(task_->failure);
  }

 private:
  std::shared_ptr<Task> task_;
};

// The thread's side. It outlives the backend where a collective never ends.
struct Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Task>> tasks;
  bool busy = false;
  bool closed = false;
  std::exception_ptr failure;  // the first one: what is started later fails with it, since the ranks are no longer in step
};

void runTask(c10d::Store& store, const Place& place, const PeerNote& note, Queue& queue, Task& task) {
  std::exception_ptr failure;
  try {
    if (queue.failure) std::rethrow_exception(queue.failure);
    HostWork(store, task.collective, place, note).run();
  } catch (const EngineError&) {
    failure = std::current_exception();
  } catch (const std::exception& error) {
    const auto* torch = dynamic_cast<const c10::Error*>(&error);
    const std::string reason = torch != nullptr ? torch->what_without_backtrace() : error.what();
    failure = std::make_exception_ptr(EngineError(
        "COLLECTIVE", describe(task.collective, place) + ": " + reason.substr(0, reason.find('\n')) + " (has rank 0, which keeps the store, ended?)"));
  }
  queue.failure = failure;
  std::lock_guard<std::mutex> lock(task.mutex);
  task.failure = failure;
  task.done = true;
  task.ended.notify_all();
}

void runQueue(const c10::intrusive_ptr<c10d::Store>& store, const Place& place, const PeerNote& note, Queue& queue) {
  std::unique_lock<std::mutex> lock(queue.mutex);
  while (true) {
    queue.changed.wait(lock, [&] { return queue.closed || !queue.tasks.empty(); });
    if (queue.tasks.empty()) return;
    const std::shared_ptr<Task> task = queue.tasks.front();
    queue.tasks.pop_front();
    queue.busy = true;
    lock.unlock();
    runTask(*store, place, note, queue, *task);
    lock.lock();
    queue.busy = false;
  }
}

class HostBackend : public Backend {
 public:
  HostBackend(c10::intrusive_ptr<c10d::Store> store, Place place, PeerNote note) : queue_(std::make_shared<Queue>()) {
    thread_ = std::thread([store = std::move(store), place, note = std::move(note), queue = queue_] { runQueue(store, place, note, *queue); });
  }

  ~HostBackend() override {
    bool idle;
    {
      std::lock_guard<std::mutex> lock(queue_->mutex);
      queue_->closed = true;
      idle = !queue_->busy && queue_->tasks.empty();
      queue_->changed.notify_all();
    }
    if (idle) thread_.join();
    else thread_.detach();  // it waits for a rank that may never come
  }

  std::unique_ptr<Pending> start(Collective collective) override {
    auto task = std::make_shared<Task>(std::move(collective));
    std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->tasks.push_back(task);
    queue_->changed.notify_all();
    return std::make_unique<HostPending>(task);
  }

 private:
  std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Backend> makeHostBackend(c10::intrusive_ptr<c10d::Store> store, Place place, PeerNote note) {
  return std::make_unique<HostBackend>(std::move(store), place, std::move(note));
}

}  // namespace grove
