// What the blocks of group_attention_backward.cu do: a block of keys, and the rows of queries that attend to it.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kKeys = 128;    // of a block
constexpr int kQueries = 64;  // of a step

// Of all blocks.
struct Arguments {
  const float2* stats;  // [heads][rows]: lse / ln 2, D
  float *sumQ, *sumK, *sumV;
  const int *cuPrompt, *cuGroup, *cuCompletion;
  int rows, promptRows, prompts, completions, heads, kvHeads, promptItems, headsAtOnce;
  float scaleLog2;
};

// Queries in one or two ranges of packed rows; `own` are those of the keys' segment from the block's first key on, causal.
struct Item {
  int firstKey, keys;  // rows of the pack; at most kKeys
  int own, other, firstOther;
  int kvHead, firstHead, heads;  // query heads, one after the other

  __device__ __forceinline__ int ownSteps() const { return (own + kQueries - 1) / kQueries; }
  __device__ __forceinline__ int steps() const { return ownSteps() + (other + kQueries - 1) / kQueries; }  // of one head
};

// The step'th kQueries rows of a head: from row `first` on, `count` of them.
struct Queries {
  int first, count;
};
__device__ __forceinline__ Queries queriesOf(const Item& item, int ownSteps, int step) {
  const bool isOwn = step < ownSteps;
  const int at = (isOwn ? step : step - ownSteps) * kQueries, left = (isOwn ? item.own : item.other) - at;
  return {(isOwn ? item.firstKey : item.firstOther) + at, left < kQueries ? left : kQueries};
}

// The index'th block of keys of the segments [cu[i], cu[i + 1]), the first `skipped` blocks of each not counted, by all lanes of a warp; segment -1:
// there are not as many.
struct KeyBlock {
  int segment, start, length, first;  // the segment's rows, and the block's first key in it
};
__device__ __forceinline__ KeyBlock findKeyBlock(const int* cu, int segments, int index, int skipped) {
  const int lane = threadIdx.x % 32;
  for (int from = 0; from < segments; from += 32) {
    const int i = from + lane;
    const int start = i < segments ? cu[i] : 0, length = i < segments ? cu[i + 1] - start : 0;
    const int blocks = max((length + kKeys - 1) / kKeys - skipped, 0);
    int upTo = blocks;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, upTo, step);
      if (lane >= step) upTo += before;
    }
    const unsigned behind = __ballot_sync(~0u, upTo > index);
    if (behind != 0) {
      const int owner = __ffs(behind) - 1, block = index - __shfl_sync(~0u, upTo - blocks, owner);
      return {from + owner, __shfl_sync(~0u, start, owner), __shfl_sync(~0u, length, owner), (skipped + block) * kKeys};
    }
    index -= __shfl_sync(~0u, upTo, 31);
  }
  return {-1, 0, 0, 0};
}

// What this block does; false: nothing. Blocks come in about the order of their work, so that the last to begin are short: those of prompts, where early
// keys have the most queries, then the first keys of every completion, then the others of completions.
__device__ __forceinline__ bool findItem(const Arguments& a, Item& item) {
  const int group = a.heads / a.kvHeads;
  if (static_cast<int>(blockIdx.x) < a.promptItems) {
    const KeyBlock b = findKeyBlock(a.cuPrompt, a.prompts, blockIdx.x / a.heads, 0);
    if (b.segment < 0) return false;
    const int head = blockIdx.x % a.heads, others = a.completions > 0 ? a.cuGroup[b.segment] : 0;
    item = {b.start + b.first, min(kKeys, b.length - b.first), b.length - b.first, a.completions > 0 ? a.cuGroup[b.segment + 1] - others : 0,
            a.promptRows + others, head / group, head, 1};
    return true;
  }
  const int index = blockIdx.x - a.promptItems, perHead = (group + a.headsAtOnce - 1) / a.headsAtOnce, sets = a.kvHeads * perHead;
  const int block = index / sets, kvHead = index % sets / perHead, firstInGroup = index % perHead * a.headsAtOnce;
  KeyBlock b;
  if (block < a.completions) {
    const int start = a.cuCompletion[block];
    b = {block, start, a.cuCompletion[block + 1] - start, 0};
    if (b.length == 0) return false;
  } else {
    b = findKeyBlock(a.cuCompletion, a.completions, block - a.completions, 1);
    if (b.segment < 0) return false;
  }
  item = {a.promptRows + b.start + b.first, min(kKeys, b.length - b.first), b.length - b.first, 0, 0, kvHead, kvHead * group + firstInGroup,
          min(a.headsAtOnce, group - firstInGroup)};
  return true;
}

}  // namespace
