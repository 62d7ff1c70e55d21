// How the blocks of decode_attention.cu read keys and values.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "flash_tile.cuh"

namespace {

constexpr int kThreads = 256;  // of a block
constexpr int kSlots = 6;      // buffers of BN keys or values, on their way or in use

// Keys and values of `length` tokens on their way to shared memory, in blocks of BN from the last to the first, in the order of their use: keys of
// the first block, then step by step the keys of the next block and the values of this one.
template <int D, int BN>
struct Stream {
  const __nv_bfloat16 *k, *v;  // the first token's, of one head
  int64_t stride;              // values from a token to the next
  int length, blocks;
  int skipped;  // a token that is not loaded, or -1
  __nv_bfloat16* ring;

  __device__ __forceinline__ __nv_bfloat16* keys(int i) const { return ring + (i == 0 ? 0 : 2 * i - 1) % kSlots * (BN * D); }
  __device__ __forceinline__ __nv_bfloat16* values(int i) const { return ring + (2 * i + 2) % kSlots * (BN * D); }

  // Block i of k or v by THREADS threads, all or the latter half; FIRST if i is 0, which may be a part of a block.
  template <bool FIRST, int THREADS = kThreads>
  __device__ __forceinline__ void load(const __nv_bfloat16* from, int i, __nv_bfloat16* to) const {
    constexpr int rows = THREADS / (D / 8);  // at once; a multiple of eight, so that the permutation of a thread's chunk stays
    const int thread = threadIdx.x % THREADS, row = thread / (D / 8), chunk = thread % (D / 8);
    int token = (blocks - 1 - i) * BN + row;
    const __nv_bfloat16* source = from + token * stride + chunk * 8;
    uint32_t target = smemAddress(at<BN>(to, row, chunk));
    const int64_t step = rows * stride;
    if (FIRST) {
#pragma unroll 1
      for (int j = 0; j < BN / rows; j++, token += rows, source += step, target += rows * 128) {
        if (token != skipped) copyAsync(target, source, token < length ? 16 : 0);
      }
    } else {
#pragma unroll
      for (int j = 0; j < BN / rows; j++, source += step) copyAsync(target + j * rows * 128, source, 16);
    }
  }
  // What step i waits for. Step 0 is the first block's keys, step i + 1 the keys of block i + 1 and the values of block i.
  __device__ __forceinline__ void askFirst() const {
    load<true>(k, 0, keys(0));
    commit();
  }
  __device__ __forceinline__ void askSecond() const {
    if (blocks > 1) load<false>(k, 1, keys(1));
    load<true>(v, 0, values(0));
    commit();
  }
  template <int THREADS = kThreads>
  __device__ __forceinline__ void ask(int step) const {  // from step 2 on
    if (step < blocks) load<false, THREADS>(k, step, keys(step));
    if (step <= blocks) load<false, THREADS>(v, step - 1, values(step - 1));
    commit();
  }
};

}  // namespace
