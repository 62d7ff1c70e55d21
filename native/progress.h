// What this process has got done, counted where it is done, so that a thread that watches over it (stall.h) can tell work from a hang. A call
// into the addon costs three stores of its own thread's.
#pragma once

#include <atomic>
#include <cstdint>

namespace grove {

struct Vital {
  // Written by the JavaScript thread alone, so that no store has to be atomic with the load before it.
  std::atomic<uint64_t> turns{0};           // calls into the addon and returns from it: odd inside
  std::atomic<const char*> op{"none yet"};  // the operator called last
  std::atomic<int64_t> peers{-1};           // number of the collective in which it waits for other ranks; -1: none
  // Written by any thread.
  std::atomic<uint64_t> work{0};  // pieces of work within one call: chunks of a file, messages to other ranks
  std::atomic<int> patience{0};   // sections that may take long and show nothing meanwhile
};

inline Vital vital;

// A piece of work is done, on whatever thread.
inline void tick() { vital.work.fetch_add(1, std::memory_order_relaxed); }

// One call of JavaScript into the addon.
class InAddon {
 public:
  InAddon() { turn(); }
  ~InAddon() { turn(); }
  InAddon(const InAddon&) = delete;
  InAddon& operator=(const InAddon&) = delete;

 private:
  static void turn() { vital.turns.store(vital.turns.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
};

// The JavaScript thread waits for other ranks: they are to blame where that takes long.
class PeerWait {
 public:
  explicit PeerWait(int64_t collective) { vital.peers.store(collective, std::memory_order_relaxed); }
  ~PeerWait() { vital.peers.store(-1, std::memory_order_relaxed); }
  PeerWait(const PeerWait&) = delete;
  PeerWait& operator=(const PeerWait&) = delete;
};

// Work that may take minutes without a sign: memory that is page-locked, communicators that are set up, a trace that is written.
class Patience {
 public:
  Patience() { vital.patience.fetch_add(1, std::memory_order_relaxed); }
  ~Patience() { vital.patience.fetch_sub(1, std::memory_order_relaxed); }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;
};

}  // namespace grove
