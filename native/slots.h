// Handles: what JavaScript holds instead of pointers. A handle is a number made of a slot index and the slot's generation; freeing a
// slot moves its generation on, so that a stale handle is detected instead of reaching another object.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace grove {

constexpr double kSlotCount = 4194304.0;  // 2^22 live objects a table; the generation takes the 31 bits above

template <typename T>
class SlotTable {
 public:
  explicit SlotTable(const char* kind) : kind_(kind) {}

  double add(T value) {
    uint32_t index;
    if (free_.empty()) {
      if (slots_.size() >= static_cast<size_t>(kSlotCount)) {
        throw EngineError("OOM", std::string("more than 4194304 live objects of kind ") + kind_);
      }
      index = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      index = free_.back();
      free_.pop_back();
    }
    Slot& slot = slots_[index];
    slot.value.emplace(std::move(value));
    return slot.generation * kSlotCount + index;
  }

  T& at(double handle) { return *slot(handle).value; }

  // Ends the slot's life; the value is destroyed. False when it was freed before.
  bool remove(double handle) {
    if (!isLive(handle)) return false;
    uint32_t index = indexOf(handle);
    Slot& slot = slots_[index];
    [[maybe_unused]] T dead = std::move(*slot.value);  // destroyed last: a destructor must see a consistent table
    slot.value.reset();
    slot.generation = slot.generation == 0x7fffffff ? 1 : slot.generation + 1;
    free_.push_back(index);
    return true;
  }

  bool isLive(double handle) const {
    if (!looksLikeHandle(handle)) return false;
    const Slot& slot = slots_[indexOf(handle)];
    return slot.value.has_value() && slot.generation == generationOf(handle);
  }

  size_t count() const { return slots_.size() - free_.size(); }

  template <typename F>
  void each(F visit) const {
    for (const Slot& slot : slots_) {
      if (slot.value.has_value()) visit(*slot.value);
    }
  }

 private:
  struct Slot {
    std::optional<T> value;
    uint32_t generation = 1;  // never 0, so that small numbers are no handles
  };

  static uint32_t indexOf(double handle) { return static_cast<uint32_t>(static_cast<uint64_t>(handle) & 0x3fffff); }
  static uint32_t generationOf(double handle) { return static_cast<uint32_t>(static_cast<uint64_t>(handle) >> 22); }

  bool looksLikeHandle(double handle) const {
    return handle >= kSlotCount && handle < 9007199254740992.0 &&
           handle == static_cast<double>(static_cast<uint64_t>(handle)) && indexOf(handle) < slots_.size();
  }

  Slot& slot(double handle) {
    if (!looksLikeHandle(handle)) throw EngineError("ARG_KIND", std::string("expected a ") + kind_ + ", got a number");
    Slot& slot = slots_[indexOf(handle)];
    if (!slot.value.has_value() || slot.generation != generationOf(handle)) {
      char text[32];
      snprintf(text, sizeof text, "%.0f", handle);
      throw EngineError("FREED", text);
    }
    return slot;
  }

  const char* kind_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace grove
