#include "js_stack.h"

#include <dlfcn.h>

#include <condition_variable>
#include <mutex>
#include <sstream>

namespace grove {

namespace {

// Node-API has no interrupts. V8's own functions are in every Node under these names, or are not found: then there is no stack to show.
using CurrentIsolate = void* (*)();
using Interrupted = void (*)(void* isolate, void* data);
using RequestInterrupt = void (*)(void* isolate, Interrupted interrupted, void* data);
using PrintStack = void (*)(void* isolate, std::ostream& out);

template <typename F>
F inNode(const char* symbol) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, symbol));
}

struct Answer {
  std::mutex mutex;
  std::condition_variable given;
  bool done = false;
  std::string stack;
};

void* isolateToAsk = nullptr;
PrintStack printStack = nullptr;

void answer(void* isolate, void* data) {
  auto* asked = static_cast<Answer*>(data);
  std::ostringstream text;
  printStack(isolate, text);
  std::lock_guard<std::mutex> lock(asked->mutex);
  asked->stack = text.str();
  asked->done = true;
  asked->given.notify_all();
}

}  // namespace

void rememberJsThread() {
  printStack = inNode<PrintStack>("_ZN2v87Message22PrintCurrentStackTraceEPNS_7IsolateERSo");
  const auto current = inNode<CurrentIsolate>("_ZN2v87Isolate10GetCurrentEv");
  if (current != nullptr) isolateToAsk = current();
}

std::string askJsStack(std::chrono::milliseconds limit) {
  const auto request = inNode<RequestInterrupt>("_ZN2v87Isolate16RequestInterruptEPFvPS0_PvES2_");
  if (isolateToAsk == nullptr || printStack == nullptr || request == nullptr) return "";
  auto* asked = new Answer();  // stays: the answer may come later
  request(isolateToAsk, answer, asked);
  std::unique_lock<std::mutex> lock(asked->mutex);
  asked->given.wait_for(lock, limit, [&] { return asked->done; });
  return asked->stack;
}

}  // namespace grove
