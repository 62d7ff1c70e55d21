// grove_merge_parts: the parts of grouped attention, added up, one thread for eight values of a row and head. Contract: GroveMergePartsLauncher in
// native/kernels.h; formula: attention_parts.cuh.
#include <cuda_runtime.h>

#include "../kernels.h"
#include "attention_parts.cuh"

namespace {

constexpr int kThreads = 256;

struct Arguments {
  const __nv_bfloat16* outs[kGroveMaxPromptChunks + 1];
  const float* lses[kGroveMaxPromptChunks + 1];
  const int *cuGroup, *chunkLengths;
  __nv_bfloat16* out;
  float* lse;
  int parts, groups, rows, heads, headDim;
};

// The group that a row belongs to: the last one that starts at or before it.
__device__ int groupOf(const Arguments& a, int row) {
  int low = 0, high = a.groups;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (a.cuGroup[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads) mergeParts(const __grid_constant__ Arguments a) {
  const int eights = a.headDim / 8;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (task >= static_cast<int64_t>(a.rows) * a.heads * eights) return;
  const int64_t rowHead = task / eights;
  const int row = static_cast<int>(rowHead / a.heads), head = static_cast<int>(rowHead % a.heads);
  const int64_t lseAt = static_cast<int64_t>(head) * a.rows + row;
  const int group = groupOf(a, row), chunks = a.parts - 1;
  // A prompt's chunks are the first ones, without gaps.
  int present = chunks;
  while (present > 0 && a.chunkLengths[(present - 1) * a.groups + group] == 0) present--;

  const float ownLse = a.lses[chunks][lseAt];
  float most = ownLse;
#pragma unroll 4
  for (int p = 0; p < present; p++) most = fmaxf(most, a.lses[p][lseAt]);
  float sum[8] = {}, total = 0;
#pragma unroll 4
  for (int p = 0; p < present; p++) {
    const float weight = partWeight(a.lses[p][lseAt], most);
    total = addWeight(total, weight);
    addPart(sum, loadEight(a.outs[p] + task * 8), weight);
  }
  const float weight = partWeight(ownLse, most);
  total = addWeight(total, weight);
  addPart(sum, loadEight(a.outs[chunks] + task * 8), weight);
  storeEight(a.out + task * 8, mergedValues(sum, partShare(total)));
  if (task % eights == 0) a.lse[lseAt] = mergedLse(most, total);
}

}  // namespace

// The launcher; its contract is GroveMergePartsLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_merge_parts(const void* const* outs, const float* const* lses, int parts,
                                                                       const int* cuGroup, const int* chunkLengths, int groups, void* out,
                                                                       float* lse, int rows, int heads, int headDim, void* stream) {
  if (parts < 1 || parts > kGroveMaxPromptChunks + 1 || headDim % 8 != 0) return static_cast<int>(cudaErrorInvalidValue);
  Arguments a{{}, {}, cuGroup, chunkLengths, static_cast<__nv_bfloat16*>(out), lse, parts, groups, rows, heads, headDim};
  for (int p = 0; p < parts; p++) {
    a.outs[p] = static_cast<const __nv_bfloat16*>(outs[p]);
    a.lses[p] = lses[p];
  }
  const int64_t tasks = static_cast<int64_t>(rows) * heads * (headDim / 8);
  if (tasks == 0) return 0;
  mergeParts<<<static_cast<unsigned>((tasks + kThreads - 1) / kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return static_cast<int>(cudaGetLastError());
}
