// How far the device has come: every so many operators the JavaScript thread leaves an event behind them in the current stream, and another thread
// asks which of them have passed. A queue that is long but works passes marks; a kernel that hangs passes none. Nothing in a build without CUDA.
#pragma once

#include <cstdint>

namespace grove {

// From now on marks are left; `device`: its index. Calls after the first one change nothing.
void beginMarks(int device);

// JavaScript thread: an operator, or a graph, has been enqueued on the current stream. Every 64th leaves a mark.
void noteEnqueued();
// JavaScript thread: leaves a mark at once and returns its number; -1 where none could be left.
int64_t leaveMark();
// JavaScript thread: while a graph is captured no mark is left, it would become part of the graph.
void pauseMarks(bool paused);

struct MarkCount {
  uint64_t passed;  // since the beginning
  bool pending;     // some have been left and not passed
};
// One thread: asks the device. May block where the driver does.
MarkCount countMarks();
// The same thread, after countMarks: whether a mark had passed then.
bool hasPassed(int64_t mark);

}  // namespace grove
