#include "profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>
#include <string>

#include "args.h"

namespace grove {

namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

bool recording = false;

}  // namespace

// profileStart(device, operators): records from now on what the device runs, and what operators the host calls. One recording at a time.
napi_value profileStart(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  if (recording) throw EngineError("OP", "a recording is under way");
  std::set<ActivityType> activities;
  if (args.boolean(0)) activities.insert(ActivityType::CUDA);
  if (args.boolean(1)) activities.insert(ActivityType::CPU);
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  recording = true;
  return nullptr;
}

// profileStop(path): ends the recording and writes it there as a Chrome trace (JSON).
napi_value profileStop(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  if (!recording) throw EngineError("OP", "no recording is under way");
  recording = false;
  const Patience patience;
  profiler::disableProfiler()->save(args.string(0));
  return nullptr;
}

}  // namespace grove
