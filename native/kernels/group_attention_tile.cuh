// A tile of group_attention_forward.cu: 64 rows of an item, attended to by a warpgroup, and the shared memory through which keys and values come.
#pragma once

#include "attention_parts.cuh"
#include "flash_tile.cuh"
#include "group_attention_items.cuh"
#include "hopper.cuh"

namespace {

constexpr int D = 128, kKeys = 64;  // head size; keys of a block
constexpr int kWarpgroups = 2;
constexpr int kStagesK = 4, kStagesV = 3, kItems = 2;  // blocks of keys and of values, and items, on their way or in use
constexpr int kSharedParts = 2;  // parts of a tile that are kept in shared memory; the rest goes to scratch
constexpr int kBlock = kKeys * D;  // values
constexpr int kPart = kTileRows * D * 2 / 16;  // uint4

struct Shared {
  __nv_bfloat16 keys[kStagesK][kBlock], values[kStagesV][kBlock], queries[kWarpgroups][kBlock];
  uint4 parts[kSharedParts][kPart];
  float lse[kGroveMaxPromptChunks + 1][kTileRows];
  Item items[kItems];
  uint64_t fullK[kStagesK], emptyK[kStagesK], fullV[kStagesV], emptyV[kStagesV], fullQ, emptyQ, fullItem[kItems], emptyItem[kItems];
};

static_assert(sizeof(Shared) <= 227 << 10, "more than a block has on Hopper");

template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// s [64, 64] (+)= a [64, 16] b [64, 16]^T, and d [64, 128] += a [64, 16] b [16, 128], where b's columns of 64 lie 8 KB apart.
template <int ADDS>
__device__ __forceinline__ void multiplyKeys(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
#define R(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, %37, 1, 1, 0;"
      : R(0), R(1), R(2), R(3), R(4), R(5), R(6), R(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADDS));
}
__device__ __forceinline__ void multiplyValues(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"
      "%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
      : R(0), R(1), R(2), R(3), R(4), R(5), R(6), R(7), R(8), R(9), R(10), R(11), R(12), R(13), R(14), R(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#undef R
}
// The lower half of matrixAt's descriptor of a tile of 64 rows and 128 columns; a slice of 64 columns is 8 KB, which it says too. The compiler is
// told that it is the same in all threads of a warp: descriptors then stay in uniform registers from one product to the next.
__device__ __forceinline__ uint32_t tileAt(const void* tile) {
  return __shfl_sync(~0u, ((sharedAddress(tile) & 0x3ffff) >> 4) | (kKeys * 128 / 16 << 16), 0);
}
__device__ __forceinline__ uint64_t descriptor(uint32_t low) { return static_cast<uint64_t>(0x40000040) << 32 | low; }

// Writes a row's values, which the four threads of a row hold as the sums of products do: x[j] has columns 8 j + lane % 4 * 2 (+ 1).
__device__ __forceinline__ void storeRow(__nv_bfloat16* to, uint32_t (&x)[16], bool present) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < 16; m += 4) {
#pragma unroll
    for (int i = m; i < m + 2; i++) {
      const uint32_t got = __shfl_xor_sync(~0u, q & 2 ? x[i] : x[i + 2], 2);
      if (q & 2) x[i] = got;
      else x[i + 2] = got;
    }
#pragma unroll
    for (int i = m; i < m + 4; i += 2) {
      const uint32_t got = __shfl_xor_sync(~0u, q & 1 ? x[i] : x[i + 1], 1);
      if (q & 1) x[i] = got;
      else x[i + 1] = got;
    }
    if (present) *reinterpret_cast<uint4*>(to + 8 * (m + q)) = {x[m], x[m + 1], x[m + 2], x[m + 3]};
  }
}

// A warpgroup's state while it attends to the keys of one item.
struct Attending {
  const Arguments& a;
  Shared& m;
  const int group, lane, row;  // which warpgroup; the first of the thread's two rows in the tile, the other is 8 further
  Ring<kStagesK> k;
  Ring<kStagesV> v;
  uint32_t q[D / 16][4];
  float out[D / 8][4];
  uint32_t weights[kKeys / 16][4];  // of the block whose values are pending
  Softmax<kKeys, 2> softmax;
  int pending, pendingFirst, pendingLast, pendingEnd;  // which part, or -1; its rows of the tile; its keys from its last block on

  __device__ __forceinline__ void release(uint64_t* barrier) {
    __syncwarp();
    if (lane == 0) barrierArrive(barrier);
  }
  __device__ __forceinline__ void askScores(float (&s)[kKeys / 8][4]) {
    const uint32_t keys = tileAt(m.keys[k.stage]);
    barrierWait(&m.fullK[k.stage], k.parity);
    pin(s);
    productsBegin();
    multiplyKeys<0>(s, q[0], descriptor(keys));
#pragma unroll
    for (int i = 1; i < D / 16; i++) multiplyKeys<1>(s, q[i], descriptor(keys + i / 4 * (kKeys * 128 / 16) + i % 4 * 2));
    productsCommit();
  }
  // `end`: keys of the block that there are; values behind them are not this segment's, and zero times what is no number were none.
  __device__ __forceinline__ void askValues(const uint32_t (&weights)[kKeys / 16][4], int end) {
    const uint32_t tile = tileAt(m.values[v.stage]);
    barrierWait(&m.fullV[v.stage], v.parity);
    if (end < kKeys) {
      __nv_bfloat16* values = m.values[v.stage];
#pragma unroll 1
      for (int i = threadIdx.x % 128 + end * (D / 8); i < kKeys * (D / 8); i += 128)
        *reinterpret_cast<uint4*>(at<kKeys>(values, i / (D / 8), i % (D / 8))) = {0, 0, 0, 0};
      publishCopies();
      asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    }
    pin(out);
    productsBegin();
#pragma unroll
    for (int j = 0; j < kKeys / 16; j++) multiplyValues(out, weights[j], descriptor(tile + j * (16 * 128 / 16)));
    productsCommit();
  }
  __device__ __forceinline__ void weigh(float (&s)[kKeys / 8][4], float (&fade)[2], const Segment& segment, int block, int seenByAll) {
    if ((block + 1) * kKeys > seenByAll) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int limit = segment.seen(row + 8 * r, row + 8 * r) - block * kKeys - lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kKeys / 8; j++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            if (8 * j + e >= limit) s[j][2 * r + e] = -CUDART_INF_F;
      }
    }
    softmax.weigh(s, a.scaleLog2, fade);
  }

  __device__ __forceinline__ void skip() {
    barrierWait(&m.fullK[k.stage], k.parity);
    release(&m.emptyK[k.stage]);
    k.next();
    barrierWait(&m.fullV[v.stage], v.parity);
    release(&m.emptyV[v.stage]);
    v.next();
  }
  __device__ __forceinline__ void packWeights(const float (&s)[kKeys / 8][4]) {
#pragma unroll
    for (int j = 0; j < kKeys / 16; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) weights[j][i] = pack(s[2 * j + i / 2][i % 2 * 2], s[2 * j + i / 2][i % 2 * 2 + 1]);
  }
  // Until the values of the last block are added.
  __device__ __forceinline__ void finishValues() {
    productsWait<0>();
    pin(out);
    release(&m.emptyV[v.stage]);
    v.next();
  }
  // As finishValues, for use behind a softmax that is to run meanwhile: without a branch on what it comes to, ptxas waits first.
  __device__ __forceinline__ void finishValuesAfterSoftmax() {
    if (fminf(softmax.sum[0], softmax.sum[1]) < 0.f) __trap();
    finishValues();
  }
  __device__ __forceinline__ void finishScores() {
    release(&m.emptyK[k.stage]);
    k.next();
  }

  // The first block of a segment; PENDING: the last one of the segment before is to be finished.
  template <bool PENDING>
  __device__ __forceinline__ void attendFirst(const Segment& segment, int block, int seenByAll) {
    float s[kKeys / 8][4], fade[2], lse[2], share[2];
    askScores(s);
    if (PENDING) {
      askValues(weights, pendingEnd);
      productsWait<1>();
    } else {
      productsWait<0>();
    }
    pin(s);
    finishScores();
    if (PENDING) softmax.finish(a.scale, lse, share);
    softmax.clear();
    weigh(s, fade, segment, block, seenByAll);
    if (PENDING) {
      finishValuesAfterSoftmax();
      keep(lse, share);
    }
    clear(out);
    packWeights(s);
  }
  // Takes the scores of a segment's keys and adds their values but those of the last block, which are pending then. `part`: which part it is.
  __device__ __forceinline__ void attend(const Segment& segment, int rows, int part) {
    const int first = group * 64, last = min(first + 63, rows - 1);
    const int seen = last < first ? 0 : segment.seen(first, last), seenByAll = segment.seenByAll(first, last);
    int block = (segment.seen(0, rows - 1) - 1) / kKeys;
    if (block * kKeys >= seen) {
      finishPart();
      for (; block >= 0 && block * kKeys >= seen; block--) skip();
      if (block < 0) return;
    }
    if (pending < 0) attendFirst<false>(segment, block, seenByAll);
    else attendFirst<true>(segment, block, seenByAll);
    pending = part, pendingFirst = segment.firstRow, pendingLast = segment.endRow;
#pragma unroll 1
    for (; block > 0; block--) {
      float s[kKeys / 8][4], fade[2];
      askScores(s);
      askValues(weights, segment.length - block * kKeys);
      productsWait<1>();
      pin(s);
      finishScores();
      weigh(s, fade, segment, block - 1, seenByAll);
      finishValuesAfterSoftmax();
      scaleRows<D, 2>(out, fade);
      packWeights(s);
    }
    pendingEnd = segment.length;
  }
  // Finishes what is pending.
  __device__ __forceinline__ void finishPart() {
    if (pending < 0) return;
    float lse[2], share[2];
    askValues(weights, pendingEnd);
    softmax.finish(a.scale, lse, share);
    finishValues();
    keep(lse, share);
    pending = -1;
  }

  __device__ __forceinline__ uint4* part(int p) const {
    uint4* at = p < kSharedParts ? m.parts[p] : a.scratch + (static_cast<int64_t>(blockIdx.x) * (a.chunks + 1) + p - kSharedParts) * kPart;
    return at + group * (kPart / kWarpgroups) + threadIdx.x % 128;
  }
  // What the pending segment comes to for its rows.
  __device__ __forceinline__ void keep(const float (&lse)[2], const float (&share)[2]) {
    scaleRows<D, 2>(out, share);
    uint4* to = part(pending);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      if (row + 8 * r < pendingFirst || row + 8 * r >= pendingLast) continue;
      if (lane % 4 == 0) m.lse[pending][row + 8 * r] = lse[r];
#pragma unroll
      for (int i = 0; i < 4; i++)
        to[(4 * r + i) * 128] = {pack(out[4 * i][2 * r], out[4 * i][2 * r + 1]), pack(out[4 * i + 1][2 * r], out[4 * i + 1][2 * r + 1]),
                                 pack(out[4 * i + 2][2 * r], out[4 * i + 2][2 * r + 1]), pack(out[4 * i + 3][2 * r], out[4 * i + 3][2 * r + 1])};
    }
  }
  __device__ __forceinline__ void store(const Item& item, uint32_t (&x)[16], float lse, int r) {
    const int at = row + 8 * r, whole = item.row + at;
    const bool present = at < item.rows;
    storeRow(a.out + (static_cast<int64_t>(whole) * a.heads + item.head) * D, x, present);
    if (!present || lane % 4 != 0) return;
    if (item.parts < 0) a.promptLse[static_cast<int64_t>(item.head) * a.promptRows + whole] = lse;
    else a.lse[static_cast<int64_t>(item.head) * (a.rows - a.promptRows) + whole - a.promptRows] = lse;
  }
  __device__ __forceinline__ void storeOnly(const Item& item) {
    float lse[2], share[2];
    if (pending >= 0) {
      askValues(weights, pendingEnd);
      finishValues();
    }
    softmax.finish(a.scale, lse, share);
    scaleRows<D, 2>(out, share);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint32_t x[16];
#pragma unroll
      for (int j = 0; j < 16; j++) x[j] = pack(out[j][2 * r], out[j][2 * r + 1]);
      store(item, x, lse[r], r);
    }
  }
  __device__ __forceinline__ void storeMerged(const Item& item) {
    __syncwarp();  // log-sum-exps of other threads of the row
    float most[2] = {-CUDART_INF_F, -CUDART_INF_F}, total[2] = {}, sum[8][8] = {};
    const auto lseOf = [&](int p, int r) { return m.lse[p][row + 8 * r]; };
    for (int p = 0; p <= item.parts; p++) most[0] = fmaxf(most[0], lseOf(p, 0)), most[1] = fmaxf(most[1], lseOf(p, 1));
#pragma unroll 2
    for (int p = 0; p <= item.parts; p++) {
      const uint4* from = part(p);
      uint4 x[8];
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = from[i * 128];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float weight = partWeight(lseOf(p, r), most[r]);
        total[r] = addWeight(total[r], weight);
#pragma unroll
        for (int i = 4 * r; i < 4 * r + 4; i++) addPart(sum[i], *reinterpret_cast<const Eight*>(&x[i]), weight);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float share = partShare(total[r]);
      uint32_t x[16];
#pragma unroll
      for (int j = 0; j < 16; j++) x[j] = pack(__fmul_rn(sum[4 * r + j / 4][j % 4 * 2], share), __fmul_rn(sum[4 * r + j / 4][j % 4 * 2 + 1], share));
      store(item, x, mergedLse(most[r], total[r]), r);
    }
    __syncwarp();
  }
};

#endif

}  // namespace
