// Where JavaScript is, asked from another thread: for a message about a loop that does not end.
#pragma once

#include <chrono>
#include <string>

namespace grove {

// JavaScript thread, once: remembers whom to ask.
void rememberJsThread();

// From another thread: the stack that JavaScript has when it next looks whether it is interrupted, as loops and calls do, innermost first; empty where
// it does not look within `limit`, or where this version of Node cannot be asked.
std::string askJsStack(std::chrono::milliseconds limit);

}  // namespace grove
