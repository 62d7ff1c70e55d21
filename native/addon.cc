// The addon's export list. What each function takes and returns stands above it in its .cc; src/torch/addon.ts is the same in types.
#include <ATen/core/grad_mode.h>

#include <atomic>

#include "autograd.h"
#include "collectives.h"
#include "cuda.h"
#include "dispatch.h"
#include "error.h"
#include "file_read.h"
#include "generator.h"
#include "host_memory.h"
#include "profile.h"
#include "runtime.h"
#include "stall.h"
#include "tensor.h"

namespace grove {

namespace {

struct Export {
  const char* name;
  napi_callback function;
};

#define GROVE_EXPORT(name) {#name, guarded<name>}
const Export kExports[] = {
    GROVE_EXPORT(resolveOp),         GROVE_EXPORT(callOp),            GROVE_EXPORT(listOps),
    GROVE_EXPORT(exchangeBuffer),    GROVE_EXPORT(tensorMeta),        GROVE_EXPORT(tensorFree),
    GROVE_EXPORT(tensorIsLive),      GROVE_EXPORT(tensorItem),        GROVE_EXPORT(tensorRead),
    GROVE_EXPORT(tensorFromArray),   GROVE_EXPORT(liveTensors),       GROVE_EXPORT(mapOpen),
    GROVE_EXPORT(mapTensor),         GROVE_EXPORT(mapClose),          GROVE_EXPORT(setGradMode),
    GROVE_EXPORT(setRequiresGrad),   GROVE_EXPORT(getGrad),           GROVE_EXPORT(setGrad),
    GROVE_EXPORT(runBackward),       GROVE_EXPORT(runGrad),           GROVE_EXPORT(generatorNew),
    GROVE_EXPORT(generatorFree),     GROVE_EXPORT(generatorGetState), GROVE_EXPORT(generatorSetState),
    GROVE_EXPORT(cudaAvailable),     GROVE_EXPORT(cudaDeviceCount),   GROVE_EXPORT(cudaSetDevice),
    GROVE_EXPORT(cudaDeviceName),    GROVE_EXPORT(cudaSynchronize),   GROVE_EXPORT(cudaMemoryStats),
    GROVE_EXPORT(cudaResetPeakMemory), GROVE_EXPORT(cudaEmptyCache),  GROVE_EXPORT(streamNew),
    GROVE_EXPORT(streamFree),        GROVE_EXPORT(streamSetCurrent),  GROVE_EXPORT(streamSynchronize),
    GROVE_EXPORT(streamWaitEvent),   GROVE_EXPORT(eventNew),          GROVE_EXPORT(eventFree),
    GROVE_EXPORT(eventRecord),       GROVE_EXPORT(eventSynchronize),  GROVE_EXPORT(eventQuery),
    GROVE_EXPORT(eventElapsed),      GROVE_EXPORT(graphNew),          GROVE_EXPORT(graphFree),
    GROVE_EXPORT(graphBegin),        GROVE_EXPORT(graphEnd),          GROVE_EXPORT(graphReplay),
    GROVE_EXPORT(loadKernels),       GROVE_EXPORT(setNumThreads),     GROVE_EXPORT(setDeterministic),
    GROVE_EXPORT(versions),          GROVE_EXPORT(benchAdd),          GROVE_EXPORT(mapRead),           GROVE_EXPORT(memoryPrepare),
    GROVE_EXPORT(memoryRelease),     GROVE_EXPORT(tensorBytesTo),      GROVE_EXPORT(profileStart),
    GROVE_EXPORT(profileStop),       GROVE_EXPORT(groupOpen),         GROVE_EXPORT(groupClose),
    GROVE_EXPORT(groupOperation),    GROVE_EXPORT(groupFail),         GROVE_EXPORT(stallWatch),
    GROVE_EXPORT(stallUnwatch),      GROVE_EXPORT(stallOperation),    GROVE_EXPORT(stallTurn),
    GROVE_EXPORT(stallPatience),
    GROVE_EXPORT(collectiveStart),   GROVE_EXPORT(collectiveWait),    GROVE_EXPORT(storeSet),
    GROVE_EXPORT(storeAdd),          GROVE_EXPORT(storeTake),         GROVE_EXPORT(endWithParent),
};
#undef GROVE_EXPORT

// The tables of handles have no locks: one JavaScript thread a process may use the engine.
std::atomic<bool> inUse{false};

}  // namespace

}  // namespace grove

NAPI_MODULE_INIT() {
  if (grove::inUse.exchange(true)) {
    napi_throw_error(env, "OP", "the engine is in use by another thread of this process; use it from one thread only");
    return nullptr;
  }
  napi_add_env_cleanup_hook(env, [](void*) { grove::inUse = false; }, nullptr);
  at::GradMode::set_enabled(false);  // autograd is switched on around a layer, never left on
  for (const grove::Export& item : grove::kExports) {
    napi_value function;
    if (napi_create_function(env, item.name, NAPI_AUTO_LENGTH, item.function, nullptr, &function) != napi_ok ||
        napi_set_named_property(env, exports, item.name, function) != napi_ok) {
      napi_throw_error(env, "OP", "the addon's exports could not be made");
      return nullptr;
    }
  }
  return exports;
}
