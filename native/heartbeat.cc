#include "heartbeat.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

#include "stall.h"

namespace grove {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::seconds;

// After the store is lost, so long is waited for the main thread to end the process by an error of its own.
constexpr Milliseconds kLostGrace(3000);
// Threads that are held up by a store that does not answer are left behind.
constexpr Milliseconds kJoin(1000);
// A standstill of another rank that is worth a word.
constexpr Milliseconds kRemarkable(5000);

std::string secondsSince(Clock::time_point since, Clock::time_point now) {
  return std::to_string(std::chrono::duration_cast<Seconds>(now - since).count()) + " s";
}

std::string oneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

// A sign of life, as its lines.
struct Beat {
  int64_t number = -1;
  std::string state;  // alive, left, failed
  int64_t started = 0;  // collectives
  int64_t waiting = -1, still = 0;  // as Standing, in ms
  std::string where, operation, collective;
  std::string error;  // the rest, where the rank has failed

  std::vector<uint8_t> bytes() const {
    const std::string text = std::to_string(number) + "\n" + state + "\n" + std::to_string(started) + "\n" + std::to_string(waiting) + "\n" +
                             std::to_string(still) + "\n" + where + "\n" + operation + "\n" + collective + "\n" + error;
    return {text.begin(), text.end()};
  }

  static Beat parse(const std::vector<uint8_t>& bytes) {
    Beat beat;
    std::istringstream lines(std::string(bytes.begin(), bytes.end()));
    std::string number, started, waiting, still;
    std::getline(lines, number);
    std::getline(lines, beat.state);
    std::getline(lines, started);
    std::getline(lines, waiting);
    std::getline(lines, still);
    std::getline(lines, beat.where);
    std::getline(lines, beat.operation);
    std::getline(lines, beat.collective);
    std::getline(lines, beat.error, '\0');
    beat.number = std::atoll(number.c_str());
    beat.started = std::atoll(started.c_str());
    beat.waiting = std::atoll(waiting.c_str());
    beat.still = std::atoll(still.c_str());
    return beat;
  }
};

struct Peer {
  Beat beat;  // number -1: not heard of yet
  Clock::time_point changed;
};

}  // namespace

struct Heartbeat::State {
  HeartbeatOptions options;
  Milliseconds interval;
  c10::intrusive_ptr<c10d::Store> store;
  mutable std::mutex mutex;
  std::condition_variable changed;
  // The rest under `mutex`.
  Beat own;
  Clock::time_point since = Clock::now();  // of own.operation
  Clock::time_point sinceCollective = Clock::now();
  int64_t published = -1;  // own.number that stands in the store
  std::vector<Peer> peers;
  Clock::time_point answered = Clock::now();  // by the store
  std::string lost;                           // why the store is, if it is
  Clock::time_point lostAt;
  std::function<std::pair<int64_t, std::string>()> overdue;
  bool wake = false;    // publish now
  bool quiet = false;   // end nothing any more: the rank is leaving or has failed
  bool closed = false;  // no more signs
  int running = 2;      // threads
  Clock::time_point closeBy = Clock::time_point::max();  // a rank that has failed has ended by then

  void publish();
  void look();
  void beat();
  void watch();
  std::string verdict(Clock::time_point now, const std::pair<int64_t, std::string>& late, const Standing& own);
  std::string deadlock(const Standing& own, Clock::time_point now) const;
  std::pair<int64_t, std::string> askOverdue(std::unique_lock<std::mutex>& lock);
  std::string describe(int rank, Clock::time_point now) const;
  std::string keeper(Clock::time_point now) const { return options.place.rank == 0 ? "" : describe(0, now); }
  void announce(std::unique_lock<std::mutex>& lock, const std::string& state, const std::string& error);
  void finished() {
    std::lock_guard<std::mutex> lock(mutex);
    running--;
    changed.notify_all();
  }
  static std::string key(int rank) { return "beat/" + std::to_string(rank); }
};

// Leaves this rank's sign.
void Heartbeat::State::publish() {
  const Standing stands = standing();
  Beat beat;
  {
    std::lock_guard<std::mutex> lock(mutex);
    own.number++;
    own.waiting = stands.waiting;
    own.still = stands.still.count();
    beat = own;
    const auto now = Clock::now();
    beat.operation += " for " + secondsSince(since, now);
    if (!beat.collective.empty()) beat.collective += ", started " + secondsSince(sinceCollective, now) + " before";
  }
  store->set(key(options.place.rank), beat.bytes());
  std::lock_guard<std::mutex> lock(mutex);
  published = beat.number;
  changed.notify_all();
}

// Takes note of the others': of those that are there already in one request.
void Heartbeat::State::look() {
  std::vector<size_t> ranks;
  std::vector<std::string> keys;
  for (size_t rank = 0; rank < peers.size(); rank++) {
    if (static_cast<int>(rank) == options.place.rank) continue;
    bool known;
    {
      std::lock_guard<std::mutex> lock(mutex);
      known = peers[rank].beat.number >= 0;
    }
    const std::string name = key(static_cast<int>(rank));
    if (!known && !store->check({name})) continue;
    ranks.push_back(rank);
    keys.push_back(name);
  }
  const auto values = keys.empty() ? std::vector<std::vector<uint8_t>>() : store->multiGet(keys);
  std::lock_guard<std::mutex> lock(mutex);
  answered = Clock::now();
  for (size_t i = 0; i < ranks.size(); i++) {
    Beat beat = Beat::parse(values[i]);
    Peer& peer = peers[ranks[i]];
    if (beat.number != peer.beat.number) peer.changed = answered;
    peer.beat = std::move(beat);
  }
  changed.notify_all();
}

void Heartbeat::State::beat() {
  try {
    while (true) {
      publish();
      {
        std::lock_guard<std::mutex> lock(mutex);
        if (closed) break;
      }
      look();
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait_for(lock, interval, [&] { return wake || closed; });
      wake = false;
    }
  } catch (const std::exception& error) {
    const auto* torch = dynamic_cast<const c10::Error*>(&error);
    const std::string reason = torch != nullptr ? torch->what_without_backtrace() : error.what();
    std::lock_guard<std::mutex> lock(mutex);
    lost = reason.substr(0, reason.find('\n'));
    lostAt = Clock::now();
    changed.notify_all();
  }
  finished();
}

std::string Heartbeat::State::describe(int rank, Clock::time_point now) const {
  const Peer& peer = peers[static_cast<size_t>(rank)];
  const Beat& beat = peer.beat;
  if (beat.number < 0) return "rank " + std::to_string(rank) + " has not been heard of yet";
  std::string text = "rank " + std::to_string(rank) + ", last heard of " + secondsSince(peer.changed, now) + " ago, was in " + beat.operation;
  if (!beat.collective.empty()) text += ", its last collective " + beat.collective;
  if (beat.still >= kRemarkable.count() && beat.waiting < 0) text += ", without progress for " + std::to_string(beat.still / 1000) + " s";
  return text + " (" + beat.where + ")";
}

// Without the lock: a question about a device may wait for what another thread does with it, and this rank is alive meanwhile.
std::pair<int64_t, std::string> Heartbeat::State::askOverdue(std::unique_lock<std::mutex>& lock) {
  const auto ask = overdue;
  if (!ask) return {0, ""};
  lock.unlock();
  std::pair<int64_t, std::string> late{0, ""};
  try {
    late = ask();
  } catch (const std::exception&) {  // a device that is lost: the main thread hears of it too, and says so
  }
  lock.lock();
  return late;
}

// Why this process has to end; empty where it has not. `late`: a collective that has outlasted its limit.
std::string Heartbeat::State::verdict(Clock::time_point now, const std::pair<int64_t, std::string>& late, const Standing& own) {
  for (size_t rank = 0; rank < peers.size(); rank++) {
    const Peer& peer = peers[rank];
    if (peer.beat.state == "failed")
      return "rank " + std::to_string(rank) + " has failed, in " + peer.beat.operation + " (" + peer.beat.where + "): " + peer.beat.error;
  }
  if (!lost.empty() && now - lostAt >= kLostGrace)
    return "the job's store at " + options.address + " is gone: rank 0, or the agent that keeps it, has ended. " + keeper(now) + " (" + lost + ")";
  if (lost.empty() && now - answered >= options.limit)
    return "the job's store at " + options.address + " has not answered for " + secondsSince(answered, now) +
           ": rank 0, or the agent that keeps it, hangs or cannot be reached. " + keeper(now);
  for (size_t rank = 0; rank < peers.size(); rank++) {
    const Peer& peer = peers[rank];
    if (peer.beat.state == "alive" && now - peer.changed >= options.limit)
      return "no sign of life from a rank within the limit of " + std::to_string(options.limit.count() / 1000.0).substr(0, 5) +
             " s: it was killed or stopped, or its machine is gone. " + describe(static_cast<int>(rank), now);
  }
  const auto& [number, collective] = late;
  if (collective.empty()) return deadlock(own, now);
  std::string missing;
  for (size_t rank = 0; rank < peers.size(); rank++) {
    if (static_cast<int>(rank) != options.place.rank && peers[rank].beat.started <= number) missing += "; " + describe(static_cast<int>(rank), now);
  }
  return collective + " has outlasted its time limit" + (missing.empty() ? ": all ranks have started it" : ": not started by" + missing.substr(1));
}

// Ranks that all wait for one another wait for ever: a collective that does not end though all have come to it, or ranks that have lost step. Empty where
// one of them gets on, or has not stood still for long enough.
std::string Heartbeat::State::deadlock(const Standing& own, Clock::time_point now) const {
  const auto stuck = [&](int64_t waiting, Milliseconds still) { return waiting >= 0 && still >= options.stall; };
  if (options.stall.count() == 0 || !stuck(own.waiting, own.still)) return "";
  std::string others;
  for (size_t rank = 0; rank < peers.size(); rank++) {
    if (static_cast<int>(rank) == options.place.rank) continue;
    const Beat& beat = peers[rank].beat;
    if (beat.state != "left" && !stuck(beat.waiting, Milliseconds(beat.still))) return "";
    others += "; " + describe(static_cast<int>(rank), now) + (beat.state == "left" ? ", has left" : ", waits in collective #" + std::to_string(beat.waiting));
  }
  return "all ranks wait for one another, and nothing has moved within the limit of " + std::to_string(options.stall.count() / 1000.0).substr(0, 5) +
         " s (distributed.stallS): this one waits in collective #" + std::to_string(own.waiting) + others;
}

// Says something last in the store, and waits until it stands there.
void Heartbeat::State::announce(std::unique_lock<std::mutex>& lock, const std::string& state, const std::string& error) {
  quiet = true;
  own.state = state;
  own.error = error;
  const int64_t next = own.number + 1;
  wake = true;
  changed.notify_all();
  changed.wait_for(lock, 2 * kJoin, [&] { return published >= next || !lost.empty(); });
  // The store goes with rank 0: the others look once an interval.
  if (state == "failed" && options.place.rank == 0 && lost.empty())
    changed.wait_for(lock, interval + kJoin / 2, [&] { return closed; });
}

void Heartbeat::State::watch() {
  const Milliseconds step = std::min(Milliseconds(500), options.limit / 10);
  auto last = Clock::now();
  std::unique_lock<std::mutex> lock(mutex);
  while (!closed) {
    changed.wait_for(lock, step, [&] { return closed; });
    const auto now = Clock::now();
    if (now - last > 4 * step + kJoin) {  // this process was stopped itself: what it has missed is nobody's fault
      for (Peer& peer : peers) peer.changed = std::min(now, peer.changed + (now - last));  // some may have been heard of since
      answered = std::min(now, answered + (now - last));
    }
    last = now;
    if (now >= closeBy) {
      std::fprintf(stderr, "%s\n  ended before everything was closed: rank %d had failed, and has had its time\n", own.error.c_str(), options.place.rank);
      _exit(1);
    }
    if (quiet) continue;
    lock.unlock();
    const Standing stands = standing();
    lock.lock();
    std::string why = quiet ? "" : verdict(now, {0, ""}, stands);
    if (why.empty() && !quiet) {
      const auto late = askOverdue(lock);
      last = Clock::now();  // a slow answer is no stop of this process
      if (quiet) continue;
      why = verdict(last, late, stands);
    }
    if (why.empty()) continue;
    const Place& place = options.place;
    std::fprintf(stderr, "error [COLLECTIVE] rank %d of %d, in %s for %s: %s\n", place.rank, place.world, own.operation.c_str(),
                 secondsSince(since, now).c_str(), why.c_str());
    std::fflush(stderr);
    announce(lock, "failed", "it ended because " + oneLine(why));
    _exit(1);
  }
  lock.unlock();
  finished();
}

Heartbeat::Heartbeat(c10::intrusive_ptr<c10d::Store> store, HeartbeatOptions options) : state_(std::make_shared<State>()) {
  State& state = *state_;
  state.interval = std::clamp(options.limit / 10, Milliseconds(100), Milliseconds(2000));
  options.where = oneLine(std::move(options.where));
  state.own.state = "alive";
  state.own.operation = "start";
  state.own.where = options.where;
  state.peers.resize(static_cast<size_t>(options.place.world));
  state.store = std::move(store);
  state.options = std::move(options);
  std::thread([state = state_] { state->beat(); }).detach();
  std::thread([state = state_] { state->watch(); }).detach();
}

Heartbeat::~Heartbeat() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->quiet = true;
  state_->overdue = nullptr;
  if (state_->own.state == "alive") state_->own.state = "left";
  state_->closed = true;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, kJoin, [&] { return state_->running == 0; });
}

void Heartbeat::operation(std::string text) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->own.operation = oneLine(std::move(text));
  state_->since = Clock::now();
}

void Heartbeat::started(int64_t number, std::string description) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->own.started = number + 1;
  state_->own.collective = std::move(description);
  state_->sinceCollective = Clock::now();
}

void Heartbeat::fail(const std::string& error, Milliseconds closing) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  if (state_->quiet) return;
  state_->announce(lock, "failed", error);
  state_->closeBy = Clock::now() + closing;
}

std::string Heartbeat::describe(int rank) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->describe(rank, Clock::now());
}

void Heartbeat::watch(std::function<std::pair<int64_t, std::string>()> overdue) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->overdue = std::move(overdue);
}

}  // namespace grove
