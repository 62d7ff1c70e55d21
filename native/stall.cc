#include "stall.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "args.h"
#include "device_marks.h"
#include "js_stack.h"
#include "progress.h"

namespace grove {

namespace {

using Clock = std::chrono::steady_clock;

// JavaScript that computes answers at once where it is; one that waits for the system does not answer.
constexpr Milliseconds kStackLimit(1000);
// More than this beside the usual pause between two looks, and the process was stopped itself.
constexpr Milliseconds kStopped(1000);

std::string seconds(Clock::duration duration) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(duration).count()) + " s";
}

struct Watch {
  Milliseconds limit{0}, patience{0};
  int device = -1;
  std::string who, where;  // "rank 1 of 2" and "host, process 7, its log: file"; who may be empty
  std::mutex mutex;
  std::condition_variable changed;
  // The rest under `mutex`.
  bool closed = false;
  std::string operation = "start";
  Clock::time_point operationSince = Clock::now();
  uint64_t host = 0;  // what the host had done when it was last seen to do something
  Clock::time_point hostSince = Clock::now();
  uint64_t passed = 0;  // marks
  Clock::time_point passedSince = Clock::now();
  Clock::time_point pendingSince = Clock::now();  // marks have been pending since, and none has passed
  bool pending = false;
  std::optional<int64_t> deviceWaits;  // the collective that the device waits in
  bool debugged = false;

  void look(Clock::time_point now);
  void judge();
  void askDevice();
  Standing standing(Clock::time_point now) const;
  std::string verdict(Clock::time_point now) const;
  [[noreturn]] void end(std::unique_lock<std::mutex>& lock, const std::string& what);
};

struct Hooks {
  std::mutex mutex;
  std::shared_ptr<Watch> watch;
  std::function<void(const std::string&)> tell;
  std::function<std::optional<int64_t>()> ask;
};

Hooks& hooks() {
  static auto* made = new Hooks();
  return *made;
}

std::shared_ptr<Watch> running() {
  std::lock_guard<std::mutex> lock(hooks().mutex);
  return hooks().watch;
}

bool inAddon() { return vital.turns.load(std::memory_order_relaxed) % 2 == 1; }

// The value of a line "name: value" of a file of this process's; empty where there is none.
std::string statusLine(const std::string& file, const std::string& name) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + ":", 0) == 0) return line.substr(line.find_first_not_of(" \t", name.size() + 1));
  }
  return "";
}

// What the system says of the main thread: "R (running)", "S (sleeping)", "D (disk sleep)".
std::string mainThread() { return statusLine("/proc/self/task/" + std::to_string(getpid()) + "/status", "State"); }

bool isTraced() {
  const std::string tracer = statusLine("/proc/self/status", "TracerPid");
  return !tracer.empty() && tracer != "0";
}

void Watch::look(Clock::time_point now) {
  const uint64_t done = vital.turns.load(std::memory_order_relaxed) + vital.work.load(std::memory_order_relaxed);
  if (done != host) hostSince = now;
  host = done;
}

Standing Watch::standing(Clock::time_point now) const {
  Standing result;
  result.still = std::chrono::duration_cast<Milliseconds>(now - std::max(hostSince, passedSince));
  if (vital.patience.load(std::memory_order_relaxed) > 0) return result;
  const int64_t peers = vital.peers.load(std::memory_order_relaxed);
  if (peers >= 0) result.waiting = peers;
  else if (inAddon() && deviceWaits.has_value()) result.waiting = *deviceWaits;
  return result;
}

// What stands still for too long; empty where nothing does.
std::string Watch::verdict(Clock::time_point now) const {
  const Milliseconds allowed = vital.patience.load(std::memory_order_relaxed) > 0 ? patience : limit;
  if (pending && !deviceWaits.has_value() && now - pendingSince >= allowed)
    return "the GPU has done nothing for " + seconds(now - pendingSince) + ": a kernel does not end";
  if (standing(now).waiting >= 0) return "";
  const bool inside = inAddon();
  // One operator of a large model may take the processor minutes; a device that has not passed a mark yet may still be set up.
  const bool unseen = inside && (device < 0 || passed == 0);
  const auto still = now - (inside ? std::max(hostSince, passedSince) : hostSince);
  if (still < (unseen ? patience : allowed)) return "";
  const std::string state = mainThread();
  if (state.rfind("D", 0) == 0 && still < patience) return "";  // it waits for a disk, which may be slow
  const std::string of = " for " + seconds(still) + " (main thread: " + state + ")";
  return inside ? "a call into the engine has not come back" + of : "JavaScript has not come back to its event loop" + of;
}

void Watch::end(std::unique_lock<std::mutex>& lock, const std::string& what) {
  const bool isJs = !inAddon();
  std::string why = "no progress within the limit of " + std::to_string(limit.count() / 1000.0).substr(0, 5) + " s (distributed.stallS): " + what +
                    "; last operator " + vital.op.load(std::memory_order_relaxed);
  const std::string in = (who.empty() ? "" : who + ", ") + "in " + operation + " for " + seconds(Clock::now() - operationSince);
  lock.unlock();
  const std::string stack = isJs ? askJsStack(kStackLimit) : "";
  std::fprintf(stderr, "error [STALL] %s: %s (%s)\n%s", in.c_str(), why.c_str(), where.c_str(), stack.c_str());
  std::fflush(stderr);
  std::function<void(const std::string&)> tell;
  {
    std::lock_guard<std::mutex> hooked(hooks().mutex);
    tell = hooks().tell;
  }
  if (tell) tell(stack.empty() ? why : why + "; at" + stack.substr(0, stack.find('\n')));
  _exit(1);
}

void Watch::judge() {
  const Milliseconds step = std::clamp(limit / 20, Milliseconds(20), Milliseconds(500));
  auto last = Clock::now();
  std::unique_lock<std::mutex> lock(mutex);
  while (!closed) {
    changed.wait_for(lock, step, [&] { return closed; });
    const auto now = Clock::now();
    if (now - last > 4 * step + kStopped) {  // this process was stopped: the time does not count
      for (auto* since : {&hostSince, &passedSince, &pendingSince}) *since = std::min(now, *since + (now - last));
    }
    last = now;
    if (closed) return;
    look(now);
    const std::string what = verdict(now);
    if (!what.empty() && !debugged && !isTraced()) end(lock, what);
  }
}

void Watch::askDevice() {
  const Milliseconds step = std::clamp(limit / 20, Milliseconds(20), Milliseconds(1000));
  std::unique_lock<std::mutex> lock(mutex);
  while (!closed) {
    changed.wait_for(lock, step, [&] { return closed; });
    if (closed) return;
    lock.unlock();
    const MarkCount marks = countMarks();
    lock.lock();
    const auto now = Clock::now();
    if (marks.passed != passed) passedSince = now;
    if (marks.passed != passed || !marks.pending) pendingSince = now;
    passed = marks.passed;
    pending = marks.pending;
    const bool isStill = now - passedSince > limit / 2 && (pending || inAddon());
    if (!isStill) {
      deviceWaits.reset();
      continue;
    }
    lock.unlock();
    std::function<std::optional<int64_t>()> ask;
    {
      std::lock_guard<std::mutex> hooked(hooks().mutex);
      ask = hooks().ask;
    }
    const std::optional<int64_t> collective = ask ? ask() : std::nullopt;
    lock.lock();
    deviceWaits = collective;
  }
}

}  // namespace

Standing standing() {
  const auto watch = running();
  if (!watch) return {};
  std::lock_guard<std::mutex> lock(watch->mutex);
  const auto now = Clock::now();
  watch->look(now);
  return watch->standing(now);
}

void onStall(std::function<void(const std::string&)> tell) {
  std::lock_guard<std::mutex> lock(hooks().mutex);
  hooks().tell = std::move(tell);
}

void onDeviceWait(std::function<std::optional<int64_t>()> ask) {
  std::lock_guard<std::mutex> lock(hooks().mutex);
  hooks().ask = std::move(ask);
}

// stallWatch(limit, patience, device, who, where): from now on this process ends where nothing gets on for `limit` ms, `patience` ms within what is known to
// take long (stall.h). `device`: index of the CUDA device, -1 on the CPU.
napi_value stallWatch(napi_env env, napi_callback_info info) {
  Args args(env, info, 5);
  auto watch = std::make_shared<Watch>();
  watch->limit = Milliseconds(args.integer(0));
  watch->patience = std::max(watch->limit, Milliseconds(args.integer(1)));
  watch->device = static_cast<int>(args.integer(2));
  watch->who = args.string(3);
  watch->where = args.string(4);
  if (watch->limit.count() < 1) throw EngineError("ARG_KIND", "a limit is longer than nothing");
  {
    std::lock_guard<std::mutex> lock(hooks().mutex);
    if (hooks().watch) throw EngineError("OP", "this process is watched already");
    hooks().watch = watch;
  }
  rememberJsThread();
  std::thread([watch] { watch->judge(); }).detach();
  if (watch->device >= 0) {
    beginMarks(watch->device);
    std::thread([watch] { watch->askDevice(); }).detach();
  }
  return nullptr;
}

// stallUnwatch(): ends the watch.
napi_value stallUnwatch(napi_env, napi_callback_info) {
  std::lock_guard<std::mutex> lock(hooks().mutex);
  if (!hooks().watch) return nullptr;
  std::lock_guard<std::mutex> inner(hooks().watch->mutex);
  hooks().watch->closed = true;
  hooks().watch->changed.notify_all();
  hooks().watch.reset();
  return nullptr;
}

// stallOperation(text): what this process is at, for the message.
napi_value stallOperation(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  const auto watch = running();
  if (!watch) return nullptr;
  std::lock_guard<std::mutex> lock(watch->mutex);
  watch->operation = args.string(0);
  watch->operationSince = Clock::now();
  return nullptr;
}

// stallTurn(debugged): the event loop has come round; `debugged`: somebody may stop JavaScript to look at it, nothing is judged then.
napi_value stallTurn(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  const auto watch = running();
  if (!watch) return nullptr;
  std::lock_guard<std::mutex> lock(watch->mutex);
  watch->debugged = args.boolean(0);
  return nullptr;
}

// stallPatience(begin): JavaScript begins, or ends, something that may take long and show nothing, e.g. the disk's.
napi_value stallPatience(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  vital.patience.fetch_add(args.boolean(0) ? 1 : -1, std::memory_order_relaxed);
  return nullptr;
}

}  // namespace grove
