// What the blocks of group_attention_backward.cu do: a block of keys, and the rows of queries that attend to it.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kKeys = 128;    // of a block
constexpr int kQueries = 64;  // of a step

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

// The index'th block of keys of the segments [cu[i], cu[i + 1]), by all lanes of a warp; segment -1: there are not as many.
struct KeyBlock {
  int segment, start, length, first;  // the segment's rows, and the block's first key in it
};
__device__ __forceinline__ KeyBlock findKeyBlock(const int* cu, int segments, int index) {
  const int lane = threadIdx.x % 32;
  for (int from = 0; from < segments; from += 32) {
    const int i = from + lane;
    const int start = i < segments ? cu[i] : 0, length = i < segments ? cu[i + 1] - start : 0, blocks = (length + kKeys - 1) / kKeys;
    int upTo = blocks;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, upTo, step);
      if (lane >= step) upTo += before;
    }
    const unsigned behind = __ballot_sync(~0u, upTo > index);
    if (behind != 0) {
      const int owner = __ffs(behind) - 1, block = index - __shfl_sync(~0u, upTo - blocks, owner);
      return {from + owner, __shfl_sync(~0u, start, owner), __shfl_sync(~0u, length, owner), block * kKeys};
    }
    index -= __shfl_sync(~0u, upTo, 31);
  }
  return {-1, 0, 0, 0};
}

}  // namespace
