// grove_group_attention_forward: the attention of a pack of prompts and completions, forward, in one launch. Contract: GroveGroupAttentionForward in
// native/kernels.h; meaning: native/group_attention.cc. Hopper only.
//
// A block takes items (group_attention_items.cuh) as it comes to them. One warp describes them and drives the copy engine: queries, then keys and
// values in blocks of 64 through two rings of shared memory. Two warpgroups take 64 rows each: the scores of a block of keys are under way while the
// weights of the one before multiply the values, and their softmax follows meanwhile. A tile's rows may belong to several completions, whose own keys
// are then several segments, each for its own rows.
//
// The arithmetic of a segment is flash_tile.cuh's and the order of its blocks FlashAttention-2's; parts of one row are rounded to bfloat16 and added
// up by attention_parts.cuh. So the bits are those of aten::_flash_attention_forward and grove_merge_parts, and of decode.
#include "group_attention_tile.cuh"
#include "tensor_map.cuh"

namespace {

constexpr int kThreads = 128 * (kWarpgroups + 1);

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

template <int REGISTERS>
__device__ __forceinline__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// The warp that brings everything.
__device__ __forceinline__ void bring(const Arguments& a, const CUtensorMap* mapQ, const CUtensorMap* mapK, const CUtensorMap* mapV, Shared& m) {
  const int lane = threadIdx.x % 32;
  const uint64_t often = readOften(), once = readOnce();
  Ring<kItems> items;
  Ring<kStagesK> k;
  Ring<kStagesV> v;
  uint32_t parityQ = 0;
  for (int index = blockIdx.x;; items.next(), parityQ ^= 1) {
    barrierWait(&m.emptyItem[items.stage], items.parity ^ 1);
    Item& item = m.items[items.stage];
    describeItem(a, index, item);
    __syncwarp();
    const int segments = item.segments;
    if (lane == 0) {
      barrierArrive(&m.fullItem[items.stage]);
      if (segments > 0) {
        const int head = item.head / (a.heads / a.kvHeads);
        barrierWait(&m.emptyQ, parityQ ^ 1);
        barrierExpect(&m.fullQ, kWarpgroups * kBlock * 2);
        for (int w = 0; w < kWarpgroups; w++) loadBox(m.queries[w], mapQ, item.row + 64 * w, item.head * (D / 64), &m.fullQ, once);
        int before = -1;  // row of the values to bring next
        const auto bringValues = [&] {
          if (before < 0) return;
          barrierWait(&m.emptyV[v.stage], v.parity ^ 1);
          barrierExpect(&m.fullV[v.stage], kBlock * 2);
          loadBox(m.values[v.stage], mapV, before, head * (D / 64), &m.fullV[v.stage], often);
          v.next();
        };
        for (int s = 0; s < segments; s++) {
          const Segment segment = item.segment[s];
          for (int b = (segment.seen(0, item.rows - 1) - 1) / kKeys; b >= 0; b--) {
            barrierWait(&m.emptyK[k.stage], k.parity ^ 1);
            barrierExpect(&m.fullK[k.stage], kBlock * 2);
            loadBox(m.keys[k.stage], mapK, segment.keyRow + b * kKeys, head * (D / 64), &m.fullK[k.stage], often);
            k.next();
            bringValues();
            before = segment.keyRow + b * kKeys;
          }
        }
        bringValues();
      }
    }
    if (segments == 0) return;
    if (lane == 0) index = gridDim.x + atomicAdd(a.next, 1);
    index = __shfl_sync(~0u, index, 0);
  }
}

__device__ __forceinline__ void attendItems(const Arguments& a, Shared& m) {
  const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Attending w{a, m, group, lane, group * 64 + warp * 16 + lane / 4};
  Ring<kItems> items;
  for (uint32_t parityQ = 0;; items.next(), parityQ ^= 1) {
    barrierWait(&m.fullItem[items.stage], items.parity);
    const Item& item = m.items[items.stage];
    const int segments = item.segments, parts = item.parts;
    if (segments == 0) return;
    barrierWait(&m.fullQ, parityQ);
    loadLeft<64>(w.q, m.queries[group], 16 * warp);
    w.release(&m.emptyQ);
    w.pending = -1;
#pragma unroll 1
    for (int s = 0; s < segments; s++) {
      const Segment segment = item.segment[s];
      w.attend(segment, item.rows, parts < 0 ? 0 : min(s, parts));
    }
    if (parts < 0) w.storeOnly(item);
    else w.finishPart(), w.storeMerged(item);
    w.release(&m.emptyItem[items.stage]);
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    groupAttention(const __grid_constant__ CUtensorMap mapQ, const __grid_constant__ CUtensorMap mapK, const __grid_constant__ CUtensorMap mapV,
                   const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& m = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    const int warps = 4 * kWarpgroups;
    for (int i = 0; i < kStagesK; i++) barrierInit(&m.fullK[i], 1), barrierInit(&m.emptyK[i], warps);
    for (int i = 0; i < kStagesV; i++) barrierInit(&m.fullV[i], 1), barrierInit(&m.emptyV[i], warps);
    for (int i = 0; i < kItems; i++) barrierInit(&m.fullItem[i], 1), barrierInit(&m.emptyItem[i], warps);
    barrierInit(&m.fullQ, 1), barrierInit(&m.emptyQ, warps);
    barrierInitDone();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    giveRegisters<40>();
    if (threadIdx.x < 32) bring(a, &mapQ, &mapK, &mapV, m);
  } else {
    takeRegisters<232>();
    attendItems(a, m);
  }
#endif
}

// x [rows, heads, D] as loadBox takes it, `stride` values from row to row, copied in boxes of 64 rows of a head.
bool describe(CUtensorMap* map, const void* x, int rows, int heads, int64_t stride) {
  const cuuint64_t bytes = static_cast<cuuint64_t>(stride) * 2, count = static_cast<cuuint64_t>(rows);
  const cuuint64_t sizes[4] = {64, count, 1, static_cast<cuuint64_t>(heads) * (D / 64)}, strides[3] = {bytes, bytes * count, 128};
  const cuuint32_t boxes[4] = {64, 64, 1, D / 64};
  return describeTensor(map, x, sizes, strides, boxes);
}

// Blocks of a launch: one for each multiprocessor.
int processors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
  return count;
}

}  // namespace

// Whether the current device can run it.
extern "C" __attribute__((visibility("default"))) int grove_group_attention_forward_fits(int headDim) {
  int device = 0, major = 0, most = 0;
  return headDim == D && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9 &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess && most >= static_cast<int>(sizeof(Shared));
}

extern "C" __attribute__((visibility("default"))) int64_t grove_group_attention_forward_scratch(int chunks) {
  return 16 + static_cast<int64_t>(processors()) * (chunks + 1) * kPart * 16;
}

// The launcher; its contract is GroveGroupAttentionForwardLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_group_attention_forward(const GroveGroupAttentionForward* g, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  CUtensorMap q, k, v;
  if (!describe(&q, g->q, g->rows, g->heads, g->strideQ) || !describe(&k, g->k, g->rows, g->kvHeads, g->strideK) ||
      !describe(&v, g->v, g->rows, g->kvHeads, g->strideV))
    return static_cast<int>(cudaErrorInvalidValue);
  if (g->chunks > kGroveMaxPromptChunks || g->heads % g->kvHeads != 0) return static_cast<int>(cudaErrorInvalidValue);
  unsigned* next = static_cast<unsigned*>(g->scratch);
  const Arguments a{static_cast<__nv_bfloat16*>(g->out), g->promptLse, g->lse, static_cast<uint4*>(g->scratch) + 1, next, g->cuPrompt, g->cuGroup,
                    g->cuCompletion, g->chunkStarts, g->chunkLengths, g->rows, g->promptRows, g->groups, g->completions, g->chunks, g->heads,
                    g->kvHeads, g->scale, static_cast<float>(g->scale * 1.4426950408889634)};
  const int bytes = static_cast<int>(sizeof(Shared));
  cudaError_t status = cudaFuncSetAttribute(groupAttention, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status == cudaSuccess) status = cudaMemsetAsync(next, 0, sizeof(unsigned), on);
  if (status != cudaSuccess) return static_cast<int>(status);
  groupAttention<<<processors(), kThreads, bytes, on>>>(q, k, v, a);
  return static_cast<int>(cudaGetLastError());
}
