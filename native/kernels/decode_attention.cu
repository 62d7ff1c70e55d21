// grove_decode_attention: one decode step's attention for groups of completions that share a prompt, rotary embedding and cache write included.
// Meaning, arguments and the composition of ATen operators it is checked against: native/decode_attention.cc.
//
// Prompt blocks take the rows of up to 64 / R completions of a group (a row is one of the R query heads that share a key/value head, of one
// completion) against one chunk of the group's prompt; every key is read once for all of them. Four warps turn 16 rows each into weights, four
// more multiply these with the values, a block of keys behind. Own blocks take one completion's R rows against its own tokens, the newest
// included: four warps share out the keys of a block for the scores, four more the columns of the values. Each block writes its part of the
// result; a second kernel adds them up.
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
#include "flash_tile.cuh"
#include "key_stream.cuh"
#include "launch.cuh"
#include "rotary_turn.cuh"

namespace {

constexpr int kWarps = kThreads / 64;  // of either kind
constexpr int kRows = 16 * kWarps;  // of a prompt block
constexpr int kMembers = 32;  // completions of a prompt block, at most
constexpr int kMergeThreads = 128;

struct Arguments {
  const __nv_bfloat16 *qkv, *cos, *sin;
  __nv_bfloat16 *ownK, *ownV;
  const __nv_bfloat16 *promptK, *promptV;
  const int *rows, *promptStart, *promptLength, *chunkKeys, *ownLength, *slots;
  __nv_bfloat16 *out, *partial;
  float* partialLse;
  int groups, groupSize, heads, kvHeads, ownSlots, chunks;
  int R, tileMembers, tiles;  // query heads to a key/value head, completions of a prompt block, prompt blocks of a chunk
  float scale, scaleLog2;
};

// n / R for n below 4096 and R up to 16.
__device__ __forceinline__ int overR(const Arguments& a, int n) { return n * (65536 / a.R + 1) >> 16; }

// Part `part` of row `row` of the group (completion in the group, then query head).
__device__ __forceinline__ int64_t partIndex(const Arguments& a, int part, int group, int head, int row) {
  return ((static_cast<int64_t>(part) * a.groups + group) * a.kvHeads + head) * (a.groupSize * a.R) + row;
}

// Writes columns `column` on of rows below `rows` of a warp's tile, which begins at row `first` of the group.
template <int D, int COLUMNS, int HALVES>
__device__ __forceinline__ void store(const Arguments& a, const float (&out)[COLUMNS / 8][4], int part, int group, int head, int first, int rows,
                                      int column) {
  const int lane = threadIdx.x % 32;
  uint32_t* to = reinterpret_cast<uint32_t*>(a.partial + partIndex(a, part, group, head, first + lane / 4) * D + column) + lane % 4;
#pragma unroll
  for (int r = 0; r < HALVES; r++) {
    if (lane / 4 + 8 * r >= rows) continue;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++) __stcg(to + r * 4 * D + 4 * i, pack(out[i][2 * r], out[i][2 * r + 1]));
  }
}
template <int HALVES>
__device__ __forceinline__ void storeLse(const Arguments& a, const float (&lse)[2], int part, int group, int head, int first, int rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < HALVES; r++)
    if (lane % 4 == 0 && lane / 4 + 8 * r < rows) __stcg(a.partialLse + partIndex(a, part, group, head, first + lane / 4 + 8 * r), lse[r]);
}

template <int D, int BN>
__device__ __forceinline__ void promptBlock(const Arguments& a, __nv_bfloat16* scratch, __nv_bfloat16* ring, int group, int head, int tile,
                                            int chunk) {
  __shared__ int slots[kMembers];
  const int warp = threadIdx.x / 32, first = tile * a.tileMembers, members = min(a.tileMembers, a.groupSize - first), rows = members * a.R;
  const int chunkKeys = a.chunkKeys[group], start = a.promptStart[group], begin = chunk * chunkKeys;
  const int length = min(chunkKeys, a.promptLength[group] - begin);
  const int own = threadIdx.x < members ? a.rows[group * a.groupSize + first + threadIdx.x] : -1;
  if (threadIdx.x < members) slots[threadIdx.x] = own;
  const bool anyone = __syncthreads_or(own >= 0);
  if (length <= 0 || !anyone) return waitForPrevious();
  const int64_t stride = static_cast<int64_t>(a.kvHeads) * D;
  const int64_t base = (static_cast<int64_t>(start) + begin) * stride + static_cast<int64_t>(head) * D;
  const Stream<D, BN> stream{a.promptK + base, a.promptV + base, stride, length, (length + BN - 1) / BN, -1, ring};
  // Prompts are not written during decode: they may be on their way before the kernel before this one has ended.
  stream.askFirst();
  stream.askSecond();
  waitForPrevious();

  __nv_bfloat16* queries = scratch;  // [kRows, D]
  constexpr int turns = kRows * (D / 16) / kThreads, apart = kThreads / (D / 16);
  const int row = threadIdx.x / (D / 16), c = threadIdx.x % (D / 16);
  Turn turn[turns];
#pragma unroll
  for (int i = 0; i < turns; i++) {
    const int r = row + i * apart, member = overR(a, r), slot = r < rows ? slots[member] : -1;
    if (slot >= 0) {
      const int64_t table = static_cast<int64_t>(slot) * D + 8 * c, queryHead = head * a.R + r - member * a.R;
      turn[i].template load<D>(a.qkv + (static_cast<int64_t>(slot) * (a.heads + 2 * a.kvHeads) + queryHead) * D + 8 * c, a.cos + table,
                               a.sin + table);
    }
  }
  stream.ask(2);
#pragma unroll
  for (int i = 0; i < turns; i++) {
    *reinterpret_cast<uint4*>(at<kRows>(queries, row + i * apart, c)) = turn[i].low();
    *reinterpret_cast<uint4*>(at<kRows>(queries, row + i * apart, c + D / 16)) = turn[i].high();
  }
  __syncthreads();

  const int lane = threadIdx.x % 32, tile16 = warp % kWarps, tileRows = rows - 16 * tile16, tileFirst = first * a.R + 16 * tile16;
  const bool busy = tileRows > 0;
  // From the warps that weigh to those that add values, for the block at hand and the one before: weights [16, BN] where the queries were, and
  // what the sums so far are to be multiplied by.
  __shared__ float fades[2][kRows];
  auto weights = [&](int i) { return scratch + (2 * tile16 + (i & 1)) * (16 * BN); };
  if (warp < kWarps) {
    uint32_t q[D / 16][4];
    loadLeft<kRows>(q, queries, 16 * warp);
    __syncthreads();  // the queries are read
    Softmax<BN, 2> softmax;
    softmax.clear();
#pragma unroll 1
    for (int i = 0; i < stream.blocks; i++) {
      // the first three steps; the later ones are asked for, and waited for, by the other warps
      if (i == 0) wait<2>();
      else if (i == 1) wait<1>();
      else wait<0>();
      publishCopies();
      __syncthreads();
      float s[BN / 8][4], fade[2];
      clear(s);
      scoreKeysTogether<D, BN>(s, q, stream.keys(i));
      if (!busy) continue;
      if (i == 0) hide<BN>(s, (stream.blocks - 1) * BN, length);
      softmax.weigh(s, a.scaleLog2, fade);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        if (lane % 4 == 0) fades[i & 1][16 * warp + lane / 4 + 8 * r] = fade[r];
#pragma unroll
        for (int j = 0; j < BN / 8; j++)
          *reinterpret_cast<uint32_t*>(at<16>(weights(i), lane / 4 + 8 * r, j) + lane % 4 * 2) = pack(s[j][2 * r], s[j][2 * r + 1]);
      }
    }
    wait<0>();
    publishCopies();
    __syncthreads();
    if (busy) {
      float lse[2], share[2];
      softmax.finish(a.scale, lse, share);
      storeLse<2>(a, lse, chunk, group, head, tileFirst, tileRows);
      if (lane % 4 == 0) fades[stream.blocks & 1][16 * warp + lane / 4] = share[0], fades[stream.blocks & 1][16 * warp + lane / 4 + 8] = share[1];
    }
    __syncthreads();
  } else {
    float out[D / 8][4];
    clear(out);
    __syncthreads();
#pragma unroll 1
    for (int i = -1; i < stream.blocks; i++) {
      if (i < 0) wait<2>();
      else wait<1>();
      publishCopies();
      __syncthreads();
      if (i < 0) continue;
      const float fade[2] = {fades[i & 1][16 * tile16 + lane / 4], fades[i & 1][16 * tile16 + lane / 4 + 8]};
      scaleRows<D, 2>(out, fade);
      uint32_t p[BN / 16][4];
      loadLeft<16>(p, weights(i), 0);
      addValuesTogether<D, BN>(out, p, stream.values(i), [&] { stream.template ask<kThreads / 2>(i + 3); });
    }
    __syncthreads();
    if (busy) {
      const float* share = fades[stream.blocks & 1] + 16 * tile16 + lane / 4;
      scaleRows<D, 2>(out, {share[0], share[8]});
      // through the tile's weights, which are all used, to whole rows
      __nv_bfloat16* turned = weights(0);
#pragma unroll
      for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < D / 8; i++)
          *reinterpret_cast<uint32_t*>(at<16>(turned, lane / 4 + 8 * r, i) + lane % 4 * 2) = pack(out[i][2 * r], out[i][2 * r + 1]);
      __syncwarp();
      __nv_bfloat16* to = a.partial + partIndex(a, chunk, group, head, tileFirst) * D;
#pragma unroll
      for (int i = 0; i < D / 16; i++) {
        const int eight = lane + 32 * i, row = eight / (D / 8);
        if (row < tileRows) storeEight(to + 8 * eight, loadEight(at<16>(turned, row, eight % (D / 8))));
      }
    }
  }
}

// Rows of an own block's scores, padded against bank conflicts.
template <int BN>
constexpr int kScoreRow = BN + 8;

template <int D, int BN, int HALVES>
__device__ __forceinline__ void ownBlock(const Arguments& a, __nv_bfloat16* scratch, __nv_bfloat16* ring, int group, int head, int member) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int completion = a.rows[group * a.groupSize + member];
  waitForPrevious();
  if (completion < 0) return;
  const int slot = a.slots == nullptr ? completion : a.slots[completion];
  __nv_bfloat16* queries = scratch;                            // [16, D]
  float* scores = reinterpret_cast<float*>(scratch + 16 * D);  // of two blocks, [8 HALVES, kScoreRow] each
  const int64_t stride = static_cast<int64_t>(a.kvHeads) * D;
  const int64_t base = static_cast<int64_t>(slot) * a.ownSlots * stride + static_cast<int64_t>(head) * D;
  const int newest = a.ownLength[slot], length = newest + 1;
  const Stream<D, BN> stream{a.ownK + base, a.ownV + base, stride, length, (length + BN - 1) / BN, newest, ring};

  // The queries, and the newest token's key and value: to the cache, and to where the stream leaves them out.
  const __nv_bfloat16* row = a.qkv + static_cast<int64_t>(completion) * (a.heads + 2 * a.kvHeads) * D;
  const int inBlock = newest % BN, r = threadIdx.x / (D / 16), c = threadIdx.x % (D / 16);
  Turn turn;
  if (r <= a.R) {
    const int64_t table = static_cast<int64_t>(completion) * D + 8 * c;
    turn.load<D>(row + (r < a.R ? head * a.R + r : a.heads + head) * D + 8 * c, a.cos + table, a.sin + table);
  }
  stream.askFirst();
  stream.askSecond();
  stream.ask(2);
  if (r <= a.R) {
    const uint4 low = turn.low(), high = turn.high();
    __nv_bfloat16* toLow = r < a.R ? at<16>(queries, r, c) : at<BN>(stream.keys(0), inBlock, c);
    __nv_bfloat16* toHigh = r < a.R ? at<16>(queries, r, c + D / 16) : at<BN>(stream.keys(0), inBlock, c + D / 16);
    *reinterpret_cast<uint4*>(toLow) = low;
    *reinterpret_cast<uint4*>(toHigh) = high;
    if (r == a.R) {
      *reinterpret_cast<uint4*>(a.ownK + base + newest * stride + 8 * c) = low;
      *reinterpret_cast<uint4*>(a.ownK + base + newest * stride + D / 2 + 8 * c) = high;
    }
  }
  if (threadIdx.x >= kThreads - D / 8) {
    const int chunk = threadIdx.x - (kThreads - D / 8);
    const Eight value = loadEight(row + static_cast<int64_t>(a.heads + a.kvHeads + head) * D + 8 * chunk);
    storeEight(at<BN>(stream.values(0), inBlock, chunk), value);
    storeEight(a.ownV + base + newest * stride + 8 * chunk, value);
  }
  __syncthreads();

  constexpr int keys = BN / kWarps, columns = D / kWarps;  // of a warp, in a block
  auto scoresOf = [&](int i) { return scores + (i & 1) * (8 * HALVES * kScoreRow<BN>) + lane / 4 * kScoreRow<BN> + lane % 4 * 2; };
  if (warp < kWarps) {
    uint32_t q[D / 16][4];
    loadLeft<16>(q, queries, 0);
#pragma unroll 1
    for (int i = 0; i <= stream.blocks; i++) {
      if (i == 0) wait<2>();
      else wait<1>();
      __syncthreads();
      if (i > 0) stream.ask(i + 2);
      if (i == stream.blocks) break;
      float s[keys / 8][4];
      clear(s);
      scoreKeys<D, BN, keys>(s, q, stream.keys(i), warp * keys);
      if (i == 0) hide<keys>(s, (stream.blocks - 1) * BN + warp * keys, length);
#pragma unroll
      for (int j = 0; j < keys / 8; j++)
#pragma unroll
        for (int r = 0; r < HALVES; r++)
          *reinterpret_cast<float2*>(scoresOf(i) + 8 * r * kScoreRow<BN> + warp * keys + 8 * j) = {s[j][2 * r], s[j][2 * r + 1]};
    }
  } else {
    float out[columns / 8][4];
    clear(out);
    Softmax<BN, HALVES> softmax;
    softmax.clear();
#pragma unroll 1
    for (int i = -1; i < stream.blocks; i++) {
      if (i < 0) wait<2>();
      else wait<1>();
      __syncthreads();
      if (i < 0) continue;
      stream.ask(i + 3);
      float s[BN / 8][4], fade[2];
      clear(s);
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
#pragma unroll
        for (int r = 0; r < HALVES; r++) {
          const float2 pair = *reinterpret_cast<const float2*>(scoresOf(i) + 8 * r * kScoreRow<BN> + 8 * j);
          s[j][2 * r] = pair.x, s[j][2 * r + 1] = pair.y;
        }
      softmax.weigh(s, a.scaleLog2, fade);
      scaleRows<columns, HALVES>(out, fade);
#pragma unroll
      for (int j = 0; j < BN / 16; j++) {
        const uint32_t p[4] = {pack(s[2 * j][0], s[2 * j][1]), pack(s[2 * j][2], s[2 * j][3]), pack(s[2 * j + 1][0], s[2 * j + 1][1]),
                               pack(s[2 * j + 1][2], s[2 * j + 1][3])};
        addValues<BN, columns>(out, p, stream.values(i), 16 * j, (warp - kWarps) * columns);
      }
    }
    float lse[2], share[2];
    softmax.finish(a.scale, lse, share);
    scaleRows<columns, HALVES>(out, share);
    store<D, columns, HALVES>(a, out, a.chunks, group, head, member * a.R, a.R, (warp - kWarps) * columns);
    if (warp == kWarps) storeLse<HALVES>(a, lse, a.chunks, group, head, member * a.R, a.R);
  }
}

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
  const int prompt = kRows * (D > 2 * BN ? D : 2 * BN), own = 16 * D + 2 * 2 * (R <= 8 ? 8 : 16) * kScoreRow<BN>;
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
