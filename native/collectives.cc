#include "collectives.h"

#include <c10/util/Exception.h>
#include <signal.h>
#include <sys/prctl.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <sstream>
#include <thread>

#include "args.h"
#include "heartbeat.h"
#include "process_group.h"
#include "progress.h"
#include "slots.h"
#include "stall.h"
#include "tensor.h"

namespace grove {

namespace {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

struct Group {
  Place place;
  std::string address;
  StorePtr store;  // of the JavaScript thread
  std::unique_ptr<Backend> host;
  std::shared_ptr<Backend> device;  // null without NCCL
  std::shared_ptr<Heartbeat> heartbeat;  // null where none is wanted
  int64_t started = 0;
};

// Never destroyed, like the tensors' table: at exit a thread may still be waiting for another rank.
SlotTable<std::unique_ptr<Group>>& groups() {
  static auto* table = new SlotTable<std::unique_ptr<Group>>("process group");
  return *table;
}

SlotTable<std::unique_ptr<Pending>>& pendings() {
  static auto* table = new SlotTable<std::unique_ptr<Pending>>("started collective");
  return *table;
}

std::string firstLine(const c10::Error& error) {
  const std::string message = error.what_without_backtrace();
  return message.substr(0, message.find('\n'));
}

// A process that hangs has nothing to save.
constexpr Milliseconds kStalled(10000);

const char* nameOf(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::kSum: return "all-reduce (sum)";
    case CollectiveKind::kMax: return "all-reduce (max)";
    case CollectiveKind::kReduceScatter: return "reduce-scatter";
    case CollectiveKind::kAllGather: return "all-gather";
    case CollectiveKind::kBroadcast: return "broadcast";
    case CollectiveKind::kBarrier: return "barrier";
  }
  return "collective";
}

// A client of the job's store. Rank 0's first one brings the server with it.
StorePtr openStore(const Place& place, const std::string& host, int64_t port, Milliseconds timeout, bool server) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.isServer = server;
  options.numWorkers = static_cast<size_t>(place.world);
  options.waitWorkers = false;
  options.timeout = timeout;
  return c10::make_intrusive<c10d::TCPStore>(host, options);
}

// All ranks are there when this returns.
void meet(c10d::Store& store, const Place& place, Milliseconds timeout) {
  store.set("joined/" + std::to_string(place.rank), std::vector<uint8_t>{1});
  std::vector<std::string> keys;
  for (int rank = 0; rank < place.world; rank++) keys.push_back("joined/" + std::to_string(rank));
  try {
    store.wait(keys, timeout);
  } catch (const c10::DistStoreError&) {
    std::string missing;
    for (int rank = 0; rank < place.world; rank++) {
      if (!store.check({keys[static_cast<size_t>(rank)]})) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
    }
    throw EngineError("COLLECTIVE", "rank " + std::to_string(place.rank) + " of " + std::to_string(place.world) + ": these ranks have not joined within " +
                                        std::to_string(timeout.count()) + " ms: " + missing);
  }
}

std::string hex(uint64_t number) {
  std::ostringstream text;
  text << std::hex << number;
  return text.str();
}

// The name of a job whose store somebody else keeps, over all attempts at it: what the ranks of an earlier one have left there is not to be taken for this
// one's, and how many there were the machines count differently (torchrun counts on each the failures of its own ranks). So every rank leaves a number of
// its own, drawn anew, and rank 0 answers each with its own: that names the job. Returns at rank 0 when all have joined under it, or `timeout` is over.
std::string agreeOnName(const StorePtr& shared, const Place& place, const std::string& base, Milliseconds timeout) {
  std::random_device random;
  const std::string own = hex((static_cast<uint64_t>(random()) << 32) ^ random());
  c10d::PrefixStore store(base + "/meeting", shared);
  const auto bytes = [](const std::string& text) { return std::vector<uint8_t>(text.begin(), text.end()); };
  const auto hello = [](int rank) { return "hello/" + std::to_string(rank); };
  const auto welcome = [](const std::string& number) { return "welcome/" + number; };
  if (place.rank != 0) {
    store.set(hello(place.rank), bytes(own));
    try {
      store.wait({welcome(own)}, timeout);
    } catch (const c10::DistStoreError&) {
      throw EngineError("COLLECTIVE", "rank " + std::to_string(place.rank) + " of " + std::to_string(place.world) +
                                          ": these ranks have not joined within " + std::to_string(timeout.count()) + " ms: 0");
    }
    const auto name = store.get(welcome(own));
    return base + "/" + std::string(name.begin(), name.end());
  }
  const std::string name = base + "/" + own;
  c10d::PrefixStore job(name + "/job", shared);
  std::vector<std::string> joined;
  for (int rank = 1; rank < place.world; rank++) joined.push_back("joined/" + std::to_string(rank));
  std::vector<std::string> heard(static_cast<size_t>(place.world));
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!joined.empty() && !job.check(joined) && std::chrono::steady_clock::now() < deadline) {
    for (int rank = 1; rank < place.world; rank++) {
      if (!store.check({hello(rank)})) continue;
      const auto value = store.get(hello(rank));
      const std::string number(value.begin(), value.end());
      if (number == heard[static_cast<size_t>(rank)]) continue;
      heard[static_cast<size_t>(rank)] = number;  // perhaps that of an earlier attempt: nobody reads the answer then
      store.set(welcome(number), bytes(own));
    }
    std::this_thread::sleep_for(Milliseconds(20));
  }
  return name;
}

// Runs `work` on the store of the JavaScript thread. Where it fails, rank 0, which keeps it, has gone.
template <typename F>
auto onStore(double handle, F work) {
  Group& group = *groups().at(handle);
  try {
    return work(*group.store);
  } catch (const c10::Error& error) {
    throw EngineError("COLLECTIVE", "rank " + std::to_string(group.place.rank) + " of " + std::to_string(group.place.world) +
                                        " has lost the job's store at " + group.address + ": " + firstLine(error));
  }
}

// What is known of a rank that is waited for.
PeerNote noteOf(const std::shared_ptr<Heartbeat>& heartbeat) {
  if (!heartbeat) return [](int) { return std::string(); };
  return [heartbeat = std::weak_ptr<Heartbeat>(heartbeat)](int rank) {
    const auto alive = heartbeat.lock();
    return alive ? "; " + alive->describe(rank) : std::string();
  };
}

void checkTensor(const at::Tensor& tensor, CollectiveKind kind, const Place& place) {
  if (!tensor.is_contiguous()) throw EngineError("ARG_KIND", "collectives take contiguous tensors only");
  const bool copies = kind == CollectiveKind::kAllGather || kind == CollectiveKind::kBroadcast;
  if (!copies && tensor.is_cpu() && (tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBool)) {
    throw EngineError("ARG_KIND", std::string(nameOf(kind)) + ": tensors of the dtype " + c10::toString(tensor.scalar_type()) + " are not reduced on the CPU");
  }
  const bool shares = kind == CollectiveKind::kReduceScatter || kind == CollectiveKind::kAllGather;
  if (shares && tensor.numel() % place.world != 0) {
    throw EngineError("ARG_KIND", std::string(nameOf(kind)) + ": " + std::to_string(tensor.numel()) + " elements do not divide among " +
                                      std::to_string(place.world) + " ranks");
  }
}

}  // namespace

std::string operationOf(const Collective& collective) {
  std::string text = nameOf(collective.kind) + (" #" + std::to_string(collective.number));
  if (!collective.tensor.defined()) return text;
  text += " of [";
  for (int64_t i = 0; i < collective.tensor.dim(); i++) text += (i == 0 ? "" : ", ") + std::to_string(collective.tensor.size(i));
  switch (collective.tensor.scalar_type()) {
    case at::kFloat: return text + "] float32";
    case at::kBFloat16: return text + "] bfloat16";
    default: return text + "] " + c10::toString(collective.tensor.scalar_type());
  }
}

std::string describe(const Collective& collective, const Place& place) {
  return "rank " + std::to_string(place.rank) + " of " + std::to_string(place.world) + ", " + operationOf(collective);
}

// groupOpen([rank, world, port, timeout, heartbeat, stall] float64, host, nccl, serve, name, where): joins the ranks that meet at rank 0's host:port and returns when all have. With `nccl`
// collectives of CUDA tensors run on the current device. `timeout`, ms, limits the meeting and every NCCL operation without a limit of its own.
// With `serve` rank 0 keeps the store, else somebody else does, over several attempts at the job perhaps; `name` keeps jobs that share a store apart. `heartbeat`, ms: from now on this process ends
// where another rank that has joined is not heard of for so long (heartbeat.h); 0: never. `stall`, ms: likewise where all ranks wait for one another. `where` says to the others where this process is.
napi_value groupOpen(napi_env env, napi_callback_info info) {
  Args args(env, info, 6);
  size_t length = 0;
  const auto* numbers = static_cast<const double*>(args.typedArray(0, &length));
  if (length != 6 * sizeof(double)) throw EngineError("ARG_KIND", "six numbers are wanted");
  const Patience meeting;  // machines may come minutes apart
  auto group = std::make_unique<Group>();
  group->place = {static_cast<int>(numbers[0]), static_cast<int>(numbers[1])};
  const Place place = group->place;
  if (place.world < 1 || place.rank < 0 || place.rank >= place.world) throw EngineError("ARG_KIND", "no such rank");
  const std::string host = args.string(1);
  const auto port = static_cast<int64_t>(numbers[2]);
  const Milliseconds timeout(static_cast<int64_t>(numbers[3])), limit(static_cast<int64_t>(numbers[4])), stall(static_cast<int64_t>(numbers[5]));
  group->address = host + ":" + std::to_string(port);
  try {
    const bool serve = args.boolean(3);
    const StorePtr first = openStore(place, host, port, timeout, place.rank == 0 && serve);
    const std::string name = serve ? args.string(4) : agreeOnName(first, place, args.string(4), timeout);
    const auto named = [&](const char* purpose, StorePtr store) { return c10::make_intrusive<c10d::PrefixStore>(name + "/" + purpose, std::move(store)); };
    const auto client = [&](const char* purpose) { return named(purpose, openStore(place, host, port, timeout, false)); };
    group->store = named("job", first);
    if (limit.count() > 0) group->heartbeat = std::make_shared<Heartbeat>(client("heart"), HeartbeatOptions{place, limit, stall, group->address, args.string(5)});
    meet(*group->store, place, timeout);
    group->host = makeHostBackend(client("host"), place, noteOf(group->heartbeat));
    if (args.boolean(2)) group->device = makeNcclBackend(client("nccl"), place, timeout);
    if (group->heartbeat && group->device) group->heartbeat->watch([device = group->device] { return device->overdue(); });
    if (group->heartbeat) onStall([heart = group->heartbeat](const std::string& why) { heart->fail(why, kStalled); });
    if (group->device) onDeviceWait([device = group->device] { return device->deviceWaits(); });
  } catch (const c10::Error& error) {
    throw EngineError("COLLECTIVE", "rank " + std::to_string(place.rank) + " of " + std::to_string(place.world) + " could not join the job at " +
                                        group->address + ": " + firstLine(error));
  }
  return makeNumber(env, groups().add(std::move(group)));
}

// groupClose(group): leaves it. Waits for nobody.
napi_value groupClose(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  onStall(nullptr);
  onDeviceWait(nullptr);
  groups().remove(args.number(0));
  return nullptr;
}

// collectiveStart(group, kind, tensor, root, timeout): starts one, in place; `tensor` is 0 in a barrier, `timeout` in ms.
//   reduce-scatter: the tensor's world-th part number `rank` becomes the sum over the ranks; the rest is undefined afterwards
//   all-gather: part number r becomes what rank r holds there
napi_value collectiveStart(napi_env env, napi_callback_info info) {
  Args args(env, info, 5);
  Group& group = *groups().at(args.number(0));
  const int64_t number = args.integer(1), root = args.integer(3);
  if (number < 0 || number > static_cast<int64_t>(CollectiveKind::kBarrier)) throw EngineError("ARG_KIND", "no such collective");
  if (root < 0 || root >= group.place.world) {
    throw EngineError("ARG_KIND", "rank " + std::to_string(root) + " is none of the " + std::to_string(group.place.world) + " ranks");
  }
  const auto kind = static_cast<CollectiveKind>(number);
  Collective collective{kind, {}, static_cast<int>(root), Milliseconds(args.integer(4)), group.started};
  Backend* backend = group.host.get();
  if (kind != CollectiveKind::kBarrier) {
    collective.tensor = tensors().at(args.number(2)).detach();
    checkTensor(collective.tensor, kind, group.place);
    if (!collective.tensor.is_cpu()) backend = group.device.get();
    if (backend == nullptr) throw EngineError("OP", "the group was opened without NCCL: tensors of a device cannot take part");
  }
  if (group.heartbeat) group.heartbeat->started(group.started, operationOf(collective));
  auto pending = backend->start(std::move(collective));
  group.started++;
  return makeNumber(env, pendings().add(std::move(pending)));
}

// collectiveWait(pending): see Pending::wait. The handle is gone afterwards, also where it throws.
napi_value collectiveWait(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  const double handle = args.number(0);
  std::unique_ptr<Pending> pending = std::move(pendings().at(handle));
  pendings().remove(handle);
  pending->wait();
  return nullptr;
}

// storeSet(group, key, bytes): leaves bytes, at most 4 MiB, for any rank to take.
napi_value storeSet(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  size_t length = 0;
  const auto* bytes = static_cast<const uint8_t*>(args.typedArray(2, &length));
  const std::string key = "js/" + args.string(1);
  onStore(args.number(0), [&](c10d::Store& store) { store.set(key, std::vector<uint8_t>(bytes, bytes + length)); });
  return nullptr;
}

// storeAdd(group, key, n): adds to a counter that all ranks see, and returns it. A counter is no key of storeSet.
napi_value storeAdd(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  const std::string key = "n/" + args.string(1);
  const int64_t n = args.integer(2);
  const int64_t sum = onStore(args.number(0), [&](c10d::Store& store) { return store.add(key, n); });
  return makeNumber(env, static_cast<double>(sum));
}

// storeTake(group, key): the bytes that storeSet left, which are gone from the store then, or undefined. Does not wait.
napi_value storeTake(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  const std::string key = "js/" + args.string(1);
  const auto bytes = onStore(args.number(0), [&](c10d::Store& store) -> std::optional<std::vector<uint8_t>> {
    if (!store.check({key})) return std::nullopt;
    std::vector<uint8_t> value = store.get(key);
    store.deleteKey(key);
    return value;
  });
  if (!bytes.has_value()) return nullptr;
  napi_value result;
  check(napi_create_buffer_copy(env, bytes->size(), bytes->data(), nullptr, &result), "napi_create_buffer_copy");
  return result;
}

// groupOperation(group, text): what this rank is at, for the others' messages.
napi_value groupOperation(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  const Group& group = *groups().at(args.number(0));
  if (group.heartbeat) group.heartbeat->operation(args.string(1));
  return nullptr;
}

// groupFail(group, error, closing): tells the other ranks that this one has failed; they end, and so does this process, at most `closing` ms later.
napi_value groupFail(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  const Group& group = *groups().at(args.number(0));
  if (group.heartbeat) group.heartbeat->fail(args.string(1), Milliseconds(args.integer(2)));
  return nullptr;
}

// endWithParent(pid): has the kernel kill this process when its parent, process `pid`, ends; at once where it has ended already.
napi_value endWithParent(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != static_cast<pid_t>(args.integer(0))) raise(SIGKILL);
  return nullptr;
}

}  // namespace grove
