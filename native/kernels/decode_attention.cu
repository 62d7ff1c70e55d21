// grove_decode_attention: one decode step's attention for groups of completions that share a prompt, rotary embedding and cache write included.
// Meaning, arguments and the composition of ATen operators it is checked against: native/decode_attention.cc.
//
// Prompt blocks take the rows of up to 64 / R completions of a group (a row is one of the R query heads that share a key/value head, of one
// completion) against one chunk of the group's prompt; every key is read once for all of them. Four warps turn 16 rows each into weights, four
// more multiply these with the values, a block of keys behind. Own blocks take one completion's R rows against its own tokens, the newest
// included: the warps share out the keys of a block for the scores and their weights, and the columns of the values. Each block writes its part
// of the result; a second kernel adds them up.
//
// The arithmetic of a part is flash_tile.cuh's and that of the sum attention_parts.cuh's, which are training's too. So the result equals, bit for
// bit, what training computes for the same token (test/rollout/decode-attention.gpu.test.ts), and no row depends on another.
//
// A launch lasts microseconds, in which a multiprocessor fetches some tens of kilobytes of instructions: what is in no inner loop is not unrolled.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../kernels.h"
#include "attention_parts.cuh"
#include "decode_blocks.cuh"
#include "launch.cuh"

namespace {

constexpr int kMergeThreads = 128;

// Grid: key/value heads, groups, and the prompt blocks before the own blocks.
template <int D, int BN>
__global__ void __launch_bounds__(kThreads, 2) decodeAttention(const __grid_constant__ Arguments a, int scratchValues) {
  extern __shared__ __align__(1024) __nv_bfloat16 scratch[];
  __nv_bfloat16* ring = scratch + scratchValues;
  letNextStart();
  const int head = blockIdx.x, group = blockIdx.y, own = static_cast<int>(blockIdx.z) - a.tiles * a.chunks;
  if (own < 0) promptBlock<D, BN>(a, scratch, ring, group, head, blockIdx.z / a.chunks, blockIdx.z % a.chunks);
  else if (a.R <= 8) ownBlock<D, BN, 1>(a, scratch, ring, group, head, own);
  else ownBlock<D, BN, 2>(a, scratch, ring, group, head, own);
}

// Adds the parts up, eight values to a thread.
template <int D>
__global__ void __launch_bounds__(kMergeThreads) mergeDecode(const __grid_constant__ Arguments a) {
  letNextStart();
  constexpr int kFirst = 4;  // chunks whose values are asked for before their weights are known
  const int task = blockIdx.x * kMergeThreads + threadIdx.x, index = task / (D / 8), c = task % (D / 8);
  const int perPair = a.groupSize * a.R, pair = index / perPair, row = index - pair * perPair, group = pair / a.kvHeads;
  const int64_t perPart = static_cast<int64_t>(a.groups) * a.kvHeads * perPair;
  int slot = -1, chunks = 0;
  if (index < perPart) {
    const int keys = a.chunkKeys[group];
    slot = a.rows[group * a.groupSize + row / a.R];
    chunks = keys > 0 ? (a.promptLength[group] + keys - 1) / keys : 0;
  }
  waitForPrevious();
  if (slot < 0) return;
  const auto lseOf = [&](int part) { return a.partialLse[part * perPart + index]; };
  const auto valuesOf = [&](int part) { return loadEight(a.partial + (part * perPart + index) * D + 8 * c); };
  float lse[kFirst];
  Eight values[kFirst];
#pragma unroll
  for (int p = 0; p < kFirst; p++) {
    if (p >= chunks) continue;
    lse[p] = lseOf(p);
    values[p] = valuesOf(p);
  }
  const float ownLse = lseOf(a.chunks);
  const Eight own = valuesOf(a.chunks);
  float most = ownLse;
#pragma unroll
  for (int p = 0; p < kFirst; p++)
    if (p < chunks) most = fmaxf(most, lse[p]);
#pragma unroll 4
  for (int p = kFirst; p < chunks; p++) most = fmaxf(most, lseOf(p));
  float sum[8] = {}, total = 0;
  const auto add = [&](const Eight& part, float partLse) {
    const float weight = partWeight(partLse, most);
    total = addWeight(total, weight);
    addPart(sum, part, weight);
  };
#pragma unroll
  for (int p = 0; p < kFirst; p++)
    if (p < chunks) add(values[p], lse[p]);
#pragma unroll 4
  for (int p = kFirst; p < chunks; p++) add(valuesOf(p), lseOf(p));
  add(own, ownLse);
  storeEight(a.out + (static_cast<int64_t>(slot) * a.heads + pair % a.kvHeads * a.R + row % a.R) * D + 8 * c, mergedValues(sum, partShare(total)));
}

// Values in shared memory before the ring, a multiple of 1024 bytes: the queries or weights of a prompt block, or an own block's queries and scores.
template <int D, int BN>
constexpr int scratchValues(int R) {
  const int prompt = kRows * (D > 2 * BN ? D : 2 * BN), own = R <= 8 ? ownScratch<D, BN, 1>() : ownScratch<D, BN, 2>();
  return ((prompt > own ? prompt : own) + 511) / 512 * 512;
}
template <int D, int BN>
constexpr int sharedBytes(int R) {
  return (scratchValues<D, BN>(R) + kSlots * BN * D) * static_cast<int>(sizeof(__nv_bfloat16));
}

template <int D, int BN>
int launch(const Arguments& a, cudaStream_t stream) {
  const int bytes = sharedBytes<D, BN>(a.R);
  const cudaError_t status = cudaFuncSetAttribute(decodeAttention<D, BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  const dim3 grid(a.kvHeads, a.groups, a.tiles * a.chunks + a.groupSize);
  const cudaError_t parts = launchChained(decodeAttention<D, BN>, grid, kThreads, bytes, stream, a, scratchValues<D, BN>(a.R));
  if (parts != cudaSuccess) return static_cast<int>(parts);
  const int merges = a.groups * a.groupSize * a.heads * (D / 8);
  return static_cast<int>(launchChained(mergeDecode<D>, (merges + kMergeThreads - 1) / kMergeThreads, kMergeThreads, 0, stream, a));
}

}  // namespace

// The launcher; its contract is GroveDecodeAttentionLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_decode_attention(
    const void* qkv, const void* cos, const void* sin, void* ownK, void* ownV, const void* promptK, const void* promptV, const int* rows,
    const int* promptStart, const int* promptLength, const int* chunkKeys, const int* ownLength, const int* slots, void* out, void* partial,
    float* partialLse, int groups, int groupSize, int heads, int kvHeads, int headDim, int ownSlots, int chunks, float scale, void* stream) {
  using T = __nv_bfloat16;
  if (groups * groupSize == 0) return 0;
  if (chunks > kGroveMaxPromptChunks || heads / kvHeads > 16) return static_cast<int>(cudaErrorInvalidValue);
  const int R = heads / kvHeads, tileMembers = kRows / R < kMembers ? kRows / R : kMembers, tiles = (groupSize + tileMembers - 1) / tileMembers;
  const Arguments a{static_cast<const T*>(qkv), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(ownK),
                    static_cast<T*>(ownV), static_cast<const T*>(promptK), static_cast<const T*>(promptV), rows, promptStart, promptLength,
                    chunkKeys, ownLength, slots, static_cast<T*>(out), static_cast<T*>(partial), partialLse, groups, groupSize, heads,
                    kvHeads, ownSlots, chunks, R, tileMembers, tiles, scale, static_cast<float>(scale * 1.4426950408889634)};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (headDim == 128) return launch<128, 64>(a, on);
  if (headDim == 64) return launch<64, 128>(a, on);
  return static_cast<int>(cudaErrorInvalidValue);
}

// Whether the current device has the shared memory for this head size: A100, H100 and H200 have, consumer cards have not.
extern "C" __attribute__((visibility("default"))) int grove_decode_attention_fits(int headDim) {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return (headDim == 128 && most >= sharedBytes<128, 64>(16)) || (headDim == 64 && most >= sharedBytes<64, 128>(16));
}
