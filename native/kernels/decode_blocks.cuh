// The two kinds of blocks of decode_attention.cu: part of a prompt against many completions, and a completion against its own tokens.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#include "attention_parts.cuh"
#include "flash_tile.cuh"
#include "key_stream.cuh"
#include "launch.cuh"
#include "rotary_turn.cuh"

namespace {

constexpr int kWarps = kThreads / 64;  // of either kind
constexpr int kRows = 16 * kWarps;  // of a prompt block
constexpr int kMembers = 32;  // completions of a prompt block, at most

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
  if (length <= 0 || !anyone) return;  // that the kernel before has ended is what the own blocks wait for
  const int64_t stride = static_cast<int64_t>(a.kvHeads) * D;
  const int64_t base = (static_cast<int64_t>(start) + begin) * stride + static_cast<int64_t>(head) * D;
  const Stream<D, BN> stream{a.promptK + base, a.promptV + base, stride, length, (length + BN - 1) / BN, -1, ring};
  // Prompts are not written during decode: they may be on their way before the kernel before this one has ended.
  stream.askFirst();
  stream.askSecond();
  // A thread turns sixteen values of up to three rows of one completion.
  constexpr int turns = 3;
  __nv_bfloat16* queries = scratch;  // [kRows, D]
  const int perRow = members * (D / 16), apart = kThreads / perRow, row = threadIdx.x / perRow, item = threadIdx.x - row * perRow;
  const int member = item / (D / 16), c = item % (D / 16), completion = slots[member];
  const bool turning = row < apart && completion >= 0;
  const __nv_bfloat16* from = a.qkv + (static_cast<int64_t>(completion) * (a.heads + 2 * a.kvHeads) + head * a.R + row) * D + 8 * c;
  const int64_t table = static_cast<int64_t>(completion) * D + 8 * c;
  waitForPrevious();
  Turn turn[turns];
  if (turning) {
    turn[0].template loadTable<D>(a.cos + table, a.sin + table);
#pragma unroll
    for (int i = 0; i < turns; i++)
      if (row + i * apart < a.R) turn[i].template loadHead<D>(from + i * apart * D);
  }
  stream.ask(2);
  if (turning) {
#pragma unroll
    for (int i = 0; i < turns; i++) {
      if (row + i * apart >= a.R) continue;
      turn[i].takeTable(turn[0]);
      const int r = member * a.R + row + i * apart;
      *reinterpret_cast<uint4*>(at<kRows>(queries, r, c)) = turn[i].low();
      *reinterpret_cast<uint4*>(at<kRows>(queries, r, c + D / 16)) = turn[i].high();
    }
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

// Rows of an own block's weights, padded against bank conflicts.
template <int BN>
constexpr int kWeightRow = BN + 8;

// Values of an own block before the ring: queries, weights of a block as bfloat16 and as float32, and the largest scores of each warp's keys.
template <int D, int BN, int HALVES>
constexpr int ownScratch() {
  return 16 * D + 8 * HALVES * (BN + 2 * kWeightRow<BN> + 2 * 2 * kWarps);
}

template <int D, int BN, int HALVES>
__device__ __forceinline__ void ownBlock(const Arguments& a, __nv_bfloat16* scratch, __nv_bfloat16* ring, int group, int head, int member) {
  constexpr int rows = 8 * HALVES, warps = 2 * kWarps, keys = BN / warps, columns = D / warps;  // keys and columns of a warp, in a block
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int completion = a.rows[group * a.groupSize + member];
  waitForPrevious();
  if (completion < 0) return;
  const int slot = a.slots == nullptr ? completion : a.slots[completion];
  __nv_bfloat16 *queries = scratch, *weights = scratch + 16 * D;  // [16, D], [rows, BN]
  float* exact = reinterpret_cast<float*>(weights + rows * BN);   // the weights before they are rounded, [rows, kWeightRow]
  float* most = exact + rows * kWeightRow<BN>;                    // the largest score of each warp's keys, [rows, warps]
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
  wait<2>();
  __syncthreads();

  // Every warp has its keys, for which it computes scores and weights, and its columns of the values. What the softmax needs of all keys goes through
  // shared memory: the largest score, and to the first warp the weights, which it sums up in FlashAttention's order.
  uint32_t q[D / 16][4];
  loadLeft<16>(q, queries, 0);
  float s[keys / 8][4], out[columns / 8][4], fade[2];
  Softmax<BN, HALVES> softmax;
  softmax.clear();
  clear(out);
  const auto score = [&](int i) {
    clear(s);
    scoreFew<D, BN, keys>(s, q, stream.keys(i), warp * keys);
    if (i == 0) hide<keys>(s, (stream.blocks - 1) * BN + warp * keys, length);
#pragma unroll
    for (int r = 0; r < HALVES; r++) {
      float x = s[0][2 * r];
#pragma unroll
      for (int j = 0; j < keys / 8; j++) x = fmaxf(fmaxf(x, s[j][2 * r]), s[j][2 * r + 1]);
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
      if (lane % 4 == 0) most[(lane / 4 + 8 * r) * warps + warp] = x;
    }
  };
  const auto weigh = [&] {
#pragma unroll
    for (int r = 0; r < HALVES; r++) {
      const int at8 = lane / 4 + 8 * r;
      float x = softmax.max[r];
#pragma unroll
      for (int w = 0; w < warps; w += 4) {
        const float4 four = *reinterpret_cast<const float4*>(most + at8 * warps + w);
        x = fmaxf(x, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
      }
      softmax.raise(r, x, a.scaleLog2, fade[r]);
#pragma unroll
      for (int j = 0; j < keys / 8; j++) {
        const float first = softmax.weight(r, s[j][2 * r], a.scaleLog2), second = softmax.weight(r, s[j][2 * r + 1], a.scaleLog2);
        const int key = warp * keys + 8 * j;
        *reinterpret_cast<float2*>(exact + at8 * kWeightRow<BN> + key + lane % 4 * 2) = {first, second};
        *reinterpret_cast<uint32_t*>(at<rows>(weights, at8, key / 8) + lane % 4 * 2) = pack(first, second);
      }
    }
  };
  score(0);
  __syncthreads();
  weigh();
#pragma unroll 1
  for (int i = 0; i < stream.blocks; i++) {
    wait<1>();
    __syncthreads();
    stream.ask(i + 3);
    const float before[2] = {fade[0], fade[1]};
    if (i + 1 < stream.blocks) score(i + 1);
    uint32_t p[BN / 16][4];
    loadLeft<rows>(p, weights, 0);
    scaleRows<columns, HALVES>(out, before);
    addFew<BN, columns>(out, p, stream.values(i), warp * columns);
    if (warp == 0) {
#pragma unroll
      for (int r = 0; r < HALVES; r++)
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
          const float2 pair = *reinterpret_cast<const float2*>(exact + (lane / 4 + 8 * r) * kWeightRow<BN> + 8 * j + lane % 4 * 2);
          softmax.sum[r] = (j == 0 ? __fmaf_rn(softmax.sum[r], before[r], pair.x) : softmax.sum[r] + pair.x) + pair.y;
        }
    }
    __syncthreads();
    if (i + 1 < stream.blocks) weigh();
  }
  if (warp == 0) {
    float lse[2], share[2];
    softmax.finish(a.scale, lse, share);
    storeLse<HALVES>(a, lse, a.chunks, group, head, member * a.R, a.R);
#pragma unroll
    for (int r = 0; r < HALVES; r++)
      if (lane % 4 == 0) most[lane / 4 + 8 * r] = share[r];
  }
  __syncthreads();
  scaleRows<columns, HALVES>(out, {most[lane / 4], HALVES == 2 ? most[lane / 4 + 8] : 0});
  store<D, columns, HALVES>(a, out, a.chunks, group, head, member * a.R, a.R, warp * columns);
}

}  // namespace
