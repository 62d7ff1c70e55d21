// Whether the other ranks of a job are alive: every rank leaves a sign of life in the job's store every few seconds, with what it is at, from a thread
// that neither JavaScript nor a collective holds up; another thread looks how old the others' are, and ends the process where one is too old or says
// that its rank has failed. So a rank that dies or throws ends a job that nobody else watches over, and is named. One that lives and does not get on
// finds that out by itself (stall.h) and fails; ranks that all wait for one another are told by what each says it waits for.
//
// No clock is compared with another machine's: a sign is as old as its number has been seen unchanged. A process that was itself stopped for a while (a
// paused container) starts to count anew.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <functional>
#include <memory>
#include <string>

#include "process_group.h"

namespace grove {

struct HeartbeatOptions {
  Place place;
  Milliseconds limit;   // a rank that has not been heard of for so long is dead
  Milliseconds stall;   // ranks that have all waited for one another for so long are stuck; 0: never
  std::string address;  // of the store
  std::string where;    // this process, for whoever reads its name: host, process id, log
};

class Heartbeat {
 public:
  // `store`: a client of its own.
  Heartbeat(c10::intrusive_ptr<c10d::Store> store, HeartbeatOptions options);
  // Says that this rank has left in good order.
  ~Heartbeat();

  // What this rank is at, e.g. "step 5, rollout".
  void operation(std::string text);
  // The collective that it has started last, and which number that has.
  void started(int64_t number, std::string description);
  // Tells the others that this rank has failed. Returns when that stands in the store and, where this rank keeps the store, the others had time to read it.
  // The process ends `closing` later at the latest, however long it takes to save what it can.
  void fail(const std::string& error, Milliseconds closing);
  // What another rank was at when it was last heard of, and where it is.
  std::string describe(int rank) const;
  // `overdue` returns the number and the description of a collective that has outlasted its limit, or an empty one.
  void watch(std::function<std::pair<int64_t, std::string>()> overdue);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace grove
