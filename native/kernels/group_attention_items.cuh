// What the blocks of group_attention_forward.cu do: items, each a tile of query rows of one group and one query head, and the keys it attends to.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "../kernels.h"

namespace {

constexpr int kTileRows = 128;  // of an item
constexpr int kMostSegments = kGroveMaxPromptChunks + kTileRows;

struct Arguments {
  __nv_bfloat16* out;
  float *promptLse, *lse;
  uint4* scratch;
  unsigned* next;  // the next item that no block has taken, beyond the first of each; 0 at the start
  const int *cuPrompt, *cuGroup, *cuCompletion, *chunkStarts, *chunkLengths;
  int rows, promptRows, groups, completions, chunks, heads, kvHeads;
  float scale, scaleLog2;
};

// Keys that are one softmax of an item's rows: `length` from row `keyRow` of k on. Rows firstRow to endRow of the tile see them, row r the first
// r - firstRow + 1.
struct Segment {
  int keyRow, length, firstRow, endRow;

  // How many of the keys the rows from `first` to `last` of the tile see, the row that sees the most, or the one that sees the fewest.
  __device__ __forceinline__ int seen(int first, int last) const {
    const int row = min(last, endRow - 1);
    return row < max(first, firstRow) ? 0 : min(length, row - firstRow + 1);
  }
  __device__ __forceinline__ int seenByAll(int first, int last) const {
    return first < firstRow || last >= endRow ? 0 : min(length, first - firstRow + 1);
  }
};
constexpr int kEveryRow = 1 << 24;  // before and behind all rows of a tile

struct Item {
  int row, rows, head, parts;  // its first row in q; query head; chunks of the prompt, or -1 for rows of a prompt, whose only segment has their result
  int segments;                // 0: there are no more items
  Segment segment[kMostSegments];
};

// The group that item `index` belongs to, where group g has cu[g + 1] - cu[g] rows; `index` becomes that within the group. -1 where there are fewer
// items; `index` is less by their number then.
__device__ __forceinline__ int findGroup(const int* cu, int groups, int heads, int& index) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < groups; first += 32) {
    const int group = first + lane, rows = group < groups ? cu[group + 1] - cu[group] : 0;
    const int count = (rows + kTileRows - 1) / kTileRows * heads;
    int end = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += before;
    }
    const unsigned behind = __ballot_sync(~0u, index < end);
    if (behind != 0) {
      const int found = __ffs(behind) - 1;
      index -= __shfl_sync(~0u, end - count, found);
      return first + found;
    }
    index -= __shfl_sync(~0u, end, 31);
  }
  return -1;
}

// The completion that has row `row` of all completions: the last one that starts at or before it.
__device__ __forceinline__ int completionOf(const Arguments& a, int row) {
  int low = 0, high = a.completions;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (a.cuCompletion[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

// Item `index`, by one warp: tiles of completions first, then those of prompts, whose last tiles see the most; heads side by side.
__device__ __forceinline__ void describeItem(const Arguments& a, int index, Item& item) {
  const int lane = threadIdx.x % 32;
  int group = findGroup(a.cuGroup, a.groups, a.heads, index);
  const bool completion = group >= 0;
  if (!completion) group = findGroup(a.cuPrompt, a.groups, a.heads, index);
  if (group < 0) {
    if (lane == 0) item.segments = 0;
    return;
  }
  const int* cu = completion ? a.cuGroup : a.cuPrompt;
  const int start = cu[group], rows = cu[group + 1] - start, tiles = (rows + kTileRows - 1) / kTileRows;
  const int first = (tiles - 1 - index / a.heads) * kTileRows, count = min(rows - first, kTileRows);
  if (lane == 0) {
    item.row = (completion ? a.promptRows : 0) + start + first;
    item.rows = count;
    item.head = index % a.heads;
  }
  if (!completion) {
    if (lane == 0) item.parts = -1, item.segments = 1, item.segment[0] = {start, rows, -first, kEveryRow};
    return;
  }
  const int length = lane < a.chunks ? a.chunkLengths[lane * a.groups + group] : 0;
  const int parts = __popc(__ballot_sync(~0u, length > 0));
  if (length > 0) item.segment[lane] = {a.chunkStarts[lane * (a.groups + 1) + group], length, -kEveryRow, kEveryRow};
  int segments = parts;
  const int tile = start + first;
  for (int c = completionOf(a, tile) + lane;; c += 32) {
    const int begin = c < a.completions ? a.cuCompletion[c] : tile + count, end = c < a.completions ? a.cuCompletion[c + 1] : begin;
    const bool present = begin < tile + count && end > begin;
    const unsigned all = __ballot_sync(~0u, present);
    if (present) item.segment[segments + __popc(all & ((1u << lane) - 1))] = {a.promptRows + begin, end - begin, begin - tile, end - tile};
    segments += __popc(all);
    if (__any_sync(~0u, begin >= tile + count)) break;
  }
  if (lane == 0) item.parts = parts, item.segments = segments;
}

}  // namespace
