// The steps of a block of group_attention_backward.cu: one warp has the copy engine bring rows of queries, two warpgroups multiply. Device code for sm_90a
// only.
#pragma once

#include "backward_products.cuh"
#include "group_items.cuh"
#include "sum_layout.cuh"

namespace {

constexpr int kStages = 3;
constexpr int kMultipliers = 256, kThreads = kMultipliers + 128;
constexpr int kKeyBytes = kKeys * kHead * 2, kQueryBytes = kQueries * kHead * 2, kScoreBytes = kKeys * kQueries * 2;

struct Shared {
  uint8_t k[kKeyBytes], v[kKeyBytes];  // [2 slices of 64 columns][keys]
  uint8_t q[kStages][kQueryBytes], dout[kStages][kQueryBytes];
  uint8_t scores[2][kScoreBytes];  // dS^T of a step and the next [keys][queries]
  float sumQ[2][kQueries * 64];    // of a step, each warpgroup's half of the columns
  float lse[kStages][kQueries], dots[kStages][kQueries];
  int4 steps[kStages];  // head, first row, rows, queries before the first (kKeys: all keys are seen)
  uint64_t fullKeys, full[kStages], empty[kStages];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

constexpr int kSliceRow = 128;  // bytes of 64 values

// The box of all 128 columns from `row` on of a head.
__device__ __forceinline__ void loadHead(void* to, const CUtensorMap* map, int row, int head, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(sharedAddress(to)),
               "l"(map), "r"(0), "r"(row), "r"(2 * head), "r"(sharedAddress(barrier))
               : "memory");
}

// By one warp.
__device__ __forceinline__ void bring(Shared& s, const Item& item, const Arguments& a, const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* v,
                                      const CUtensorMap* dout) {
  const int lane = threadIdx.x % 32, ownSteps = item.ownSteps(), steps = item.steps(), all = steps * item.heads;
  if (lane == 0) {
    barrierExpect(&s.fullKeys, 2 * kKeyBytes);
    loadHead(s.k, k, item.firstKey, item.kvHead, &s.fullKeys);
    loadHead(s.v, v, item.firstKey, item.kvHead, &s.fullKeys);
  }
  int stage = 0, head = item.firstHead, step = 0;
  uint32_t parity = 1;
  for (int i = 0; i < all; i++) {
    const Queries queries = queriesOf(item, ownSteps, step);
    float2 stats[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = lane + 32 * half;  // of another segment, or none: P = 0
      stats[half] = row < queries.count ? a.stats[static_cast<int64_t>(head) * a.rows + queries.first + row] : float2{INFINITY, 0};
    }
    barrierWait(&s.empty[stage], parity);
#pragma unroll
    for (int half = 0; half < 2; half++) s.lse[stage][lane + 32 * half] = stats[half].x, s.dots[stage][lane + 32 * half] = stats[half].y;
    if (lane == 0) s.steps[stage] = {head, queries.first, queries.count, step < ownSteps ? min(step * kQueries, kKeys) : kKeys};
    __syncwarp();
    if (lane == 0) {
      barrierExpect(&s.full[stage], 2 * kQueryBytes);
      loadHead(s.q[stage], q, queries.first, head, &s.full[stage]);
      loadHead(s.dout[stage], dout, queries.first, head, &s.full[stage]);
    }
    if (++stage == kStages) stage = 0, parity ^= 1;
    if (++step == steps) step = 0, head++;
  }
}

// Scores [64 keys, 64 queries] = keys queries^T.
__device__ __forceinline__ void multiplyHeads(float (&scores)[32], const uint8_t* keys, const uint8_t* queries) {
#pragma unroll
  for (int k = 0; k < kHead / 16; k++) {
    const uint64_t left = matrixAt(keys + k / 4 * kKeys * kSliceRow) + 2 * (k % 4), right = matrixAt(queries + k / 4 * kQueries * kSliceRow) + 2 * (k % 4);
    if (k == 0) addProduct<false, 0>(scores, left, right);
    else addProduct<true, 0>(scores, left, right);
  }
}

// sums [64 keys, 128] += scores [64 keys, 64 queries] rows [64 queries, 128].
__device__ __forceinline__ void addRows(float (&sums)[64], const uint32_t (&scores)[16], const uint8_t* rows) {
  const uint64_t right = columnsAt(rows, kQueries * kSliceRow);
#pragma unroll
  for (int k = 0; k < kQueries / 16; k++) addProduct(sums, scores + 4 * k, right + k * (16 * kSliceRow >> 4));
}

// sums [64 queries, 64] = scores [128 keys, 64 queries]^T keys [128, 64].
__device__ __forceinline__ void multiplyScores(float (&sums)[32], const uint8_t* scores, const uint8_t* keys) {
  const uint64_t left = matrixAt(scores), right = matrixAt(keys);
#pragma unroll
  for (int k = 0; k < kKeys / 16; k++) {
    if (k == 0) addProduct<false, 1>(sums, left, right);
    else addProduct<true, 1>(sums, left + k * (16 * kSliceRow >> 4), right + k * (16 * kSliceRow >> 4));
  }
}

// Adds 64 rows of dk or dv, `keys` of the block's being there, to `head`, a kv head's sums, from row `first` on.
__device__ __forceinline__ void addKeys(float* head, const float (&sums)[64], int rows, int first, int keys) {
  const int lane = threadIdx.x % 32, key = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (key + 8 * half >= keys) continue;
#pragma unroll
    for (int g = 0; g < 8; g++) {
      const float* d = sums + 8 * g + 2 * half;
      addAt(head + placeOf(rows, first + key + 8 * half, 16 * g) + 4 * (lane % 4), d[0], d[1], d[4], d[5]);
    }
  }
}

// Writes a warpgroup's half of dq to shared memory, as it is to lie in global memory from row `first` on.
__device__ __forceinline__ void place(float* to, const float (&sums)[32], int first) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4, swap = ((first + row) & 1) * 16;
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int g = 0; g < 4; g++) {
      const float* d = sums + 8 * g + 2 * half;
      *reinterpret_cast<float4*>(to + (row + 8 * half) * 64 + (16 * g ^ swap) + 4 * (lane % 4)) = float4{d[0], d[1], d[4], d[5]};
    }
  }
}

__device__ __forceinline__ void multiply(Shared& s, const Item& item, const Arguments& a) {
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);  // known to be the same in all lanes, so what is derived from it needs no lanes
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  const int keys = item.keys;
  const int key = warpgroup * 64 + warp * 16 + lane / 4;  // and key + 8
  const int column = lane % 4 * 2;                        // queries 8 j + column (+ 1)
  const uint8_t *myK = s.k + warpgroup * 64 * kSliceRow, *myV = s.v + warpgroup * 64 * kSliceRow;
  const int storeKey = warpgroup * 64 + warp * 16 + lane % 16, storeChunk = lane / 16;

  float sumK[64] = {}, sumV[64] = {}, scores[32], dP[32];
  barrierWait(&s.fullKeys, 0);
  int stage = 0, turn = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int left = item.steps() * item.heads; left > 0; left--) {
    barrierWait(&s.full[stage], parity);
    pin(scores);
    pin(dP);
    productsBegin();
    multiplyHeads(scores, myK, s.q[stage]);
    productsCommit();
    multiplyHeads(dP, myV, s.dout[stage]);
    productsCommit();
    productsWait<1>();  // S
    pin(scores);

    const int before = s.steps[stage].w;
    if (before < kKeys || keys < kKeys) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int own = key + 8 * half, from = own >= keys ? kQueries : own - before;  // the first query that attends to it
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (8 * j + column < from) scores[4 * j + 2 * half] = -INFINITY;
          if (8 * j + column + 1 < from) scores[4 * j + 2 * half + 1] = -INFINITY;
        }
      }
    }
    uint32_t leftP[16];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 lse = *reinterpret_cast<const float2*>(&s.lse[stage][8 * j + column]);
      scores[4 * j] = exp2Fast(fmaf(scores[4 * j], a.scaleLog2, -lse.x));
      scores[4 * j + 1] = exp2Fast(fmaf(scores[4 * j + 1], a.scaleLog2, -lse.y));
      scores[4 * j + 2] = exp2Fast(fmaf(scores[4 * j + 2], a.scaleLog2, -lse.x));
      scores[4 * j + 3] = exp2Fast(fmaf(scores[4 * j + 3], a.scaleLog2, -lse.y));
      leftP[2 * j] = packed(scores[4 * j], scores[4 * j + 1]);
      leftP[2 * j + 1] = packed(scores[4 * j + 2], scores[4 * j + 3]);
    }
    pin(sumV);
    productsBegin();
    addRows(sumV, leftP, s.dout[stage]);
    productsCommit();
    productsWait<1>();  // dP
    pin(dP);
    uint32_t leftS[16];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 dot = *reinterpret_cast<const float2*>(&s.dots[stage][8 * j + column]);
      leftS[2 * j] = packed(scores[4 * j] * (dP[4 * j] - dot.x), scores[4 * j + 1] * (dP[4 * j + 1] - dot.y));
      leftS[2 * j + 1] = packed(scores[4 * j + 2] * (dP[4 * j + 2] - dot.x), scores[4 * j + 3] * (dP[4 * j + 3] - dot.y));
    }
    // Two buffers in turn: who writes to one has met the other warpgroup when that was done with it.
    const uint32_t buffer = sharedAddress(s.scores[turn]) + storeKey * kSliceRow;
#pragma unroll
    for (int k = 0; k < 4; k++) storeMatrices(buffer + ((2 * k + storeChunk) ^ (storeKey & 7)) * 16, leftS + 4 * k);
    showToEngines();
    if (threadIdx.x % 128 == 0) addsAreRead();
    meet<kMultipliers>(1);

    float dQ[32];
    pin(dQ);
    pin(sumK);
    productsBegin();
    multiplyScores(dQ, s.scores[turn], s.k + warpgroup * kKeys * kSliceRow);
    productsCommit();
    addRows(sumK, leftS, s.q[stage]);
    productsCommit();
    productsWait<1>();  // dQ, and the sums for V
    pin(dQ);
    pin(sumV);
    const int4 now = s.steps[stage];
    place(s.sumQ[warpgroup], dQ, now.y);
    showToEngines();
    meet<128>(2 + warpgroup);
    if (threadIdx.x % 128 == 0)
      addFrom(a.sumQ + ((static_cast<int64_t>(now.x) * 2 + warpgroup) * a.rows + now.y) * 64, s.sumQ[warpgroup], now.z * 64 * sizeof(float));
    productsWait<0>();
    pin(sumK);
    if (lane == 0) barrierArrive(&s.empty[stage]);
    turn ^= 1;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  const int64_t head = static_cast<int64_t>(item.kvHead) * a.rows * kHead;
  addKeys(a.sumK + head, sumK, a.rows, item.firstKey, keys);
  addKeys(a.sumV + head, sumV, a.rows, item.firstKey, keys);
  if (threadIdx.x % 128 == 0) addsAreDone();
}

#endif

}  // namespace
