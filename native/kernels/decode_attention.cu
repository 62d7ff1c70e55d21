// grove_decode_attention: one decode step's attention for groups of completions that share a prompt, rotary embedding and cache write included.
// Meaning, arguments and the composition of ATen operators it is checked against: native/decode_attention.cc.
//
// A block is four warps. Prompt blocks take 64 rows of a group (row = completion x query head of one key/value head: 7 heads x 8 completions are
// 56) against the keys of their prompt, or of one chunk of it; every key is read once for the whole group. Own blocks give each warp one
// completion: its query heads against its own tokens, the newest included. They wait for the prompt's blocks and add the parts up.
//
// The arithmetic is that of FlashAttention-2's forward as libtorch builds it (the kernel behind aten::_flash_attention_forward), step by step:
// blocks of keys from the last to the first, the same matrix instructions, the same order of sums, and products fused into sums where it fuses
// them. So with one chunk per prompt the result equals, bit for bit, what training computes for the same token
// (test/rollout/decode-attention.gpu.test.ts), and no row depends on another.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>
#include <stdint.h>

#include "matrix_units.cuh"

namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16 * kWarps;  // of a prompt block
constexpr int kStages = 3;          // key/value blocks on their way, prompt blocks
constexpr int kPieceRows = 32;      // keys or values in a piece of an own block
constexpr int kPieces = 4;          // pieces on their way, each warp of an own block

struct Arguments {
  const __nv_bfloat16 *qkv, *cos, *sin;
  __nv_bfloat16 *ownK, *ownV;
  const __nv_bfloat16 *promptK, *promptV;
  const int *rows, *promptStart, *promptLength, *ownLength;
  __nv_bfloat16* out;
  float *partial, *partialLse;
  unsigned* arrived;
  int groups, groupSize, heads, kvHeads, ownSlots, chunks, chunkKeys;
  float scale, scaleLog2;
};

// Rows of D values in shared memory, their 16-byte chunks permuted within a row so that eight rows of one column lie in different banks.
template <int D>
__device__ __forceinline__ __nv_bfloat16* at(__nv_bfloat16* tile, int row, int chunk) {
  return tile + row * D + ((chunk ^ (row & 7)) << 3);
}

// Eight neighbouring values in one access.
struct __align__(16) Eight {
  __nv_bfloat16 at[8];
};
__device__ __forceinline__ Eight loadEight(const __nv_bfloat16* p) { return *reinterpret_cast<const Eight*>(p); }
__device__ __forceinline__ void storeEight(__nv_bfloat16* p, const Eight& x) { *reinterpret_cast<Eight*>(p) = x; }

// x cos + roll(x) sin for values 8 c .. 8 c + 7 of a head and those half a head away, rounded as the model's operators round it
// (src/model/rope.ts); sin's first half is negated already.
template <int D>
__device__ __forceinline__ void rotate(const __nv_bfloat16* head, const __nv_bfloat16* cos, const __nv_bfloat16* sin, int c, Eight& low,
                                       Eight& high) {
  const Eight x = loadEight(head + 8 * c), y = loadEight(head + D / 2 + 8 * c);
  const Eight cosX = loadEight(cos + 8 * c), cosY = loadEight(cos + D / 2 + 8 * c);
  const Eight sinX = loadEight(sin + 8 * c), sinY = loadEight(sin + D / 2 + 8 * c);
  auto turned = [](__nv_bfloat16 own, __nv_bfloat16 other, __nv_bfloat16 cosine, __nv_bfloat16 sine) {
    const float kept = __bfloat162float(__float2bfloat16_rn(__bfloat162float(own) * __bfloat162float(cosine)));
    return __float2bfloat16_rn(kept + __bfloat162float(other) * __bfloat162float(sine));
  };
#pragma unroll
  for (int i = 0; i < 8; i++) {
    low.at[i] = turned(x.at[i], y.at[i], cosX.at[i], sinX.at[i]);
    high.at[i] = turned(y.at[i], x.at[i], cosY.at[i], sinY.at[i]);
  }
}

// Softmax of one warp's 16 rows over blocks of keys; a thread holds rows lane / 4 and lane / 4 + 8.
template <int D, int BN>
struct Softmax {
  float out[D / 8][4];
  float max[2], sum[2];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) out[i][e] = 0;
    max[0] = max[1] = -CUDART_INF_F;
    sum[0] = sum[1] = 0;
  }

  // Takes the scores of a block, hidden ones at -infinity; leaves their weights in `s`.
  __device__ void weigh(float (&s)[BN / 8][4], float scaleLog2) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float before = max[r];
      float most = before;
#pragma unroll
      for (int j = 0; j < BN / 8; j++) most = fmaxf(fmaxf(most, s[j][2 * r]), s[j][2 * r + 1]);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      max[r] = most;
      const float shift = most == -CUDART_INF_F ? 0.f : most * scaleLog2;
      const float fade = exp2f((before - (most == -CUDART_INF_F ? 0.f : most)) * scaleLog2);
#pragma unroll
      for (int i = 0; i < D / 8; i++) out[i][2 * r] *= fade, out[i][2 * r + 1] *= fade;
#pragma unroll
      for (int j = 0; j < BN / 8; j++) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
          s[j][e] = exp2f(__fsub_rn(__fmul_rn(s[j][e], scaleLog2), shift));
          sum[r] = j == 0 && e == 2 * r ? __fmaf_rn(sum[r], fade, s[j][e]) : sum[r] + s[j][e];
        }
      }
    }
  }

  // The log-sum-exp of rows lane / 4 + 8 r; divides `out`.
  __device__ void finish(float (&lse)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 2);
      total += __shfl_xor_sync(~0u, total, 1);
      const float share = total == 0.f || total != total ? 1.f : 1.f / total;
      lse[r] = total == 0.f || total != total ? -CUDART_INF_F : __fmaf_rn(max[r], scale, __logf(total));
#pragma unroll
      for (int i = 0; i < D / 8; i++) out[i][2 * r] *= share, out[i][2 * r + 1] *= share;
    }
  }
};

// scores [16, KEYS] += q [16, D] times keys [KEYS, D]^T in shared memory. Step by step along D over all keys: the products of a step do not
// wait for each other.
template <int D, int KEYS>
__device__ __forceinline__ void scoreKeys(float (*s)[4], const uint32_t (&q)[D / 16][4], __nv_bfloat16* keys) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t b[KEYS / 16][4];
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) loadMatrix(b[j], at<D>(keys, 16 * j + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
      multiply(s[2 * j], q[k], b[j][0], b[j][1]);
      multiply(s[2 * j + 1], q[k], b[j][2], b[j][3]);
    }
  }
}

// out [16, D] += weights [16, KEYS] times values [KEYS, D] in shared memory; the weights in the layout of scores.
template <int D, int KEYS>
__device__ __forceinline__ void addValues(float (&out)[D / 8][4], const float (*s)[4], __nv_bfloat16* values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < KEYS / 16; j++) {
    const uint32_t p[4] = {pack(s[2 * j][0], s[2 * j][1]), pack(s[2 * j][2], s[2 * j][3]), pack(s[2 * j + 1][0], s[2 * j + 1][1]),
                           pack(s[2 * j + 1][2], s[2 * j + 1][3])};
    uint32_t b[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++) loadMatrixTransposed(b[i], at<D>(values, 16 * j + (lane & 15), 2 * i + (lane >> 4)));
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
      multiply(out[2 * i], p, b[i][0], b[i][1]);
      multiply(out[2 * i + 1], p, b[i][2], b[i][3]);
    }
  }
}

template <int D>
__device__ __forceinline__ void loadQueries(uint32_t (&q)[D / 16][4], __nv_bfloat16* tile, int firstRow) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < D / 16; k++) loadMatrix(q[k], at<D>(tile, firstRow + (lane & 15), 2 * k + (lane >> 4)));
}

template <int D, int BN>
__device__ __forceinline__ void clearScores(float (&s)[BN / 8][4]) {
#pragma unroll
  for (int j = 0; j < BN / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) s[j][e] = 0;
}

// Hides keys from `end` on; the block begins at `begin`.
template <int BN>
__device__ __forceinline__ void hide(float (&s)[BN / 8][4], int begin, int end) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < BN / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (begin + 8 * j + lane % 4 * 2 + (e & 1) >= end) s[j][e] = -CUDART_INF_F;
}

// Part `part` of (group, kv head, row of the group): D values and a log-sum-exp.
__device__ __forceinline__ int64_t partIndex(const Arguments& a, int part, int group, int head, int row) {
  return ((static_cast<int64_t>(part) * a.groups + group) * a.kvHeads + head) * (a.groupSize * (a.heads / a.kvHeads)) + row;
}

template <int D>
__device__ __forceinline__ void store(const Arguments& a, const float (&out)[D / 8][4], const float (&lse)[2], int part, int group, int head,
                                      int row, int rows, bool round) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int own = row + lane / 4 + 8 * r;
    if (own >= rows) continue;
    const int64_t index = partIndex(a, part, group, head, own);
    if (lane % 4 == 0) a.partialLse[index] = lse[r];
    float2* to = reinterpret_cast<float2*>(a.partial + index * D) + lane % 4;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
      float2 pair = {out[i][2 * r], out[i][2 * r + 1]};
      if (round) pair = {__bfloat162float(__float2bfloat16_rn(pair.x)), __bfloat162float(__float2bfloat16_rn(pair.y))};
      __stcg(to + 4 * i, pair);
    }
  }
}

template <int D, int BN>
__device__ void promptBlock(const Arguments& a, __nv_bfloat16* memory, int group, int head, int tile, int chunk) {
  const int R = a.heads / a.kvHeads, rows = a.groupSize * R, warp = threadIdx.x / 32;
  const int length = a.promptLength[group];
  const int begin = chunk * a.chunkKeys, end = min(length, begin + a.chunkKeys);
  const int blocks = begin < end ? (end - begin + BN - 1) / BN : 0;
  __nv_bfloat16* queries = memory;  // [kRows, D]
  __nv_bfloat16* ring = memory + kRows * D;
  const int64_t stride = static_cast<int64_t>(a.kvHeads) * D;
  const int64_t base = (static_cast<int64_t>(a.promptStart[group]) + begin) * stride + static_cast<int64_t>(head) * D;

  auto load = [&](int block, int stage) {  // keys, then values
    __nv_bfloat16* to = ring + stage * 2 * BN * D;
#pragma unroll
    for (int i = 0; i < BN * D / 8 / (32 * kWarps); i++) {
      const int at16 = threadIdx.x + i * 32 * kWarps, row = at16 / (D / 8), chunk16 = at16 % (D / 8);
      const bool valid = begin + block * BN + row < end;
      const int64_t from = base + (valid ? (static_cast<int64_t>(block) * BN + row) * stride : 0) + chunk16 * 8;
      copyAsync(at<D>(to, row, chunk16), a.promptK + from, valid);
      copyAsync(at<D>(to + BN * D, row, chunk16), a.promptV + from, valid);
    }
    commit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) {
    if (i < blocks) load(blocks - 1 - i, i);
    else commit();
  }
#pragma unroll
  for (int i = 0; i < kRows * D / 16 / (32 * kWarps); i++) {
    const int task = threadIdx.x + i * 32 * kWarps, row = task / (D / 16), c = task % (D / 16), inGroup = tile * kRows + row;
    const int slot = inGroup < rows ? a.rows[group * a.groupSize + inGroup / R] : -1;
    Eight low = {}, high = {};
    if (slot >= 0) {
      const __nv_bfloat16* queryHead = a.qkv + (static_cast<int64_t>(slot) * (a.heads + 2 * a.kvHeads) + head * R + inGroup % R) * D;
      rotate<D>(queryHead, a.cos + static_cast<int64_t>(slot) * D, a.sin + static_cast<int64_t>(slot) * D, c, low, high);
    }
    storeEight(at<D>(queries, row, c), low);
    storeEight(at<D>(queries, row, c + D / 16), high);
  }
  __syncthreads();
  uint32_t q[D / 16][4];
  loadQueries<D>(q, queries, 16 * warp);

  Softmax<D, BN> softmax;
  softmax.clear();
  for (int i = 0; i < blocks; i++) {
    wait<kStages - 2>();
    __syncthreads();
    const int next = i + kStages - 1;
    if (next < blocks) load(blocks - 1 - next, next % kStages);
    else commit();
    __nv_bfloat16* keys = ring + i % kStages * 2 * BN * D;
    float s[BN / 8][4];
    clearScores<D, BN>(s);
    scoreKeys<D, BN>(s, q, keys);
    if (i == 0) hide<BN>(s, begin + (blocks - 1) * BN, end);
    softmax.weigh(s, a.scaleLog2);
    addValues<D, BN>(softmax.out, s, keys + BN * D);
  }
  float lse[2];
  softmax.finish(lse, a.scale);
  store<D>(a, softmax.out, lse, chunk, group, head, tile * kRows + 16 * warp, rows, a.chunks == 1);
}

// Adds the parts of a completion's rows up: prompt chunks 0 .. chunks - 1, then its own, which the warp holds. The prompt's blocks come first in
// the grid, so they run or have run when an own block runs; its warps wait for them here.
template <int D>
__device__ void merge(const Arguments& a, const float (&own)[D / 8][4], const float (&lseOwn)[2], int group, int head, int member, int slot,
                      int blocks) {
  const int R = a.heads / a.kvHeads, lane = threadIdx.x % 32, pair = group * a.kvHeads + head;
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(a.arrived + 2 * pair) : "memory");
  } while (seen < static_cast<unsigned>(blocks));
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int inMember = lane / 4 + 8 * r;
    if (inMember >= R) continue;
    const int row = member * R + inMember;
    float2 sum[D / 8];
#pragma unroll
    for (int i = 0; i < D / 8; i++) sum[i] = {0, 0};
    float most = -CUDART_INF_F, total = 0;
    for (int chunk = 0; chunk < a.chunks; chunk++) most = fmaxf(most, __ldcg(a.partialLse + partIndex(a, chunk, group, head, row)));
    for (int chunk = 0; chunk < a.chunks; chunk++) {
      const int64_t index = partIndex(a, chunk, group, head, row);
      const float lse = __ldcg(a.partialLse + index);
      if (lse == -CUDART_INF_F) continue;  // a chunk behind the prompt's end
      const float weight = expf(lse - most);
      total += weight;
      const float2* part = reinterpret_cast<const float2*>(a.partial + index * D) + lane % 4;
#pragma unroll
      for (int i = 0; i < D / 8; i++) {
        const float2 x = __ldcg(part + 4 * i);
        sum[i] = {__fmaf_rn(x.x, weight, sum[i].x), __fmaf_rn(x.y, weight, sum[i].y)};
      }
    }
    const float lsePrompt = a.chunks == 1 ? most : most + logf(total);
    const float top = fmaxf(lsePrompt, lseOwn[r]);
    const float lse = top + log1pf(expf(-fabsf(lsePrompt - lseOwn[r])));
    const float weightPrompt = expf(lsePrompt - lse) / total, weightOwn = expf(lseOwn[r] - lse);
    __nv_bfloat16* to = a.out + (static_cast<int64_t>(slot) * a.heads + head * R + inMember) * D + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
      // The own part is rounded first, as the kernel behind training writes it.
      const float x = __bfloat162float(__float2bfloat16_rn(own[i][2 * r])), y = __bfloat162float(__float2bfloat16_rn(own[i][2 * r + 1]));
      *reinterpret_cast<uint32_t*>(to + 8 * i) =
          pack(__fmaf_rn(x, weightOwn, sum[i].x * weightPrompt), __fmaf_rn(y, weightOwn, sum[i].y * weightPrompt));
    }
  }
}

template <int D, int BN>
__device__ void ownBlock(const Arguments& a, __nv_bfloat16* memory, int group, int head, int four, int promptBlocks) {
  const int R = a.heads / a.kvHeads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int member = four * kWarps + warp;
  const int slot = member < a.groupSize ? a.rows[group * a.groupSize + member] : -1;
  if (slot < 0) return;
  __nv_bfloat16* queries = memory + warp * 16 * D;
  __nv_bfloat16* ring = memory + kRows * D + warp * kPieces * kPieceRows * D;
  const int64_t stride = static_cast<int64_t>(a.kvHeads) * D;
  const int64_t base = static_cast<int64_t>(slot) * a.ownSlots * stride + static_cast<int64_t>(head) * D;
  const __nv_bfloat16* row = a.qkv + static_cast<int64_t>(slot) * (a.heads + 2 * a.kvHeads) * D;
  const __nv_bfloat16 *cos = a.cos + static_cast<int64_t>(slot) * D, *sin = a.sin + static_cast<int64_t>(slot) * D;
  const int newest = a.ownLength[slot], length = newest + 1;

  // The newest token's key and value, into the cache before anything is read from it.
  const __nv_bfloat16 *key = row + static_cast<int64_t>(a.heads + head) * D, *value = key + stride;
  if (lane < D / 16) {
    Eight low, high;
    rotate<D>(key, cos, sin, lane, low, high);
    storeEight(a.ownK + base + newest * stride + 8 * lane, low);
    storeEight(a.ownK + base + newest * stride + D / 2 + 8 * lane, high);
  } else if (lane >= 16 && lane < 16 + D / 8) {
    storeEight(a.ownV + base + newest * stride + 8 * (lane - 16), loadEight(value + 8 * (lane - 16)));
  }
  __threadfence();
  __syncwarp();

  constexpr int perBlock = BN / kPieceRows;
  const int blocks = (length + BN - 1) / BN;
  const int pieces = blocks * 2 * perBlock;
  // Piece i: of block blocks - 1 - i / (2 perBlock), first its keys, then its values.
  auto load = [&](int i) {
    if (i < pieces) {
      const int block = blocks - 1 - i / (2 * perBlock), inBlock = i % (2 * perBlock);
      const int first = block * BN + inBlock % perBlock * kPieceRows;
      const __nv_bfloat16* from = inBlock < perBlock ? a.ownK : a.ownV;
      __nv_bfloat16* to = ring + i % kPieces * kPieceRows * D;
#pragma unroll
      for (int j = 0; j < kPieceRows * D / 8 / 32; j++) {
        const int at16 = lane + j * 32, r = at16 / (D / 8), chunk16 = at16 % (D / 8);
        const bool valid = first + r < length;
        copyAsync(at<D>(to, r, chunk16), from + base + (valid ? (first + r) * stride : 0) + chunk16 * 8, valid);
      }
    }
    commit();
  };
#pragma unroll
  for (int i = 0; i < kPieces - 1; i++) load(i);
#pragma unroll
  for (int i = 0; i < 16 * D / 16 / 32; i++) {
    const int task = lane + 32 * i, r = task / (D / 16), c = task % (D / 16);
    Eight low = {}, high = {};
    if (r < R) rotate<D>(row + static_cast<int64_t>(head * R + r) * D, cos, sin, c, low, high);
    storeEight(at<D>(queries, r, c), low);
    storeEight(at<D>(queries, r, c + D / 16), high);
  }
  __syncwarp();
  uint32_t q[D / 16][4];
  loadQueries<D>(q, queries, 0);

  Softmax<D, BN> softmax;
  softmax.clear();
  int piece = 0;
  auto arrive = [&]() {  // the buffer of the next piece; the one behind it is asked for
    wait<kPieces - 2>();
    __syncwarp();
    load(piece + kPieces - 1);
    return ring + piece++ % kPieces * kPieceRows * D;
  };
  for (int block = blocks - 1; block >= 0; block--) {
    float s[BN / 8][4];
    clearScores<D, BN>(s);
#pragma unroll
    for (int j = 0; j < perBlock; j++) scoreKeys<D, kPieceRows>(s + j * kPieceRows / 8, q, arrive());
    if (block == blocks - 1) hide<BN>(s, block * BN, length);
    softmax.weigh(s, a.scaleLog2);
#pragma unroll
    for (int j = 0; j < perBlock; j++) addValues<D, kPieceRows>(softmax.out, s + j * kPieceRows / 8, arrive());
  }
  float lse[2];
  softmax.finish(lse, a.scale);
  merge<D>(a, softmax.out, lse, group, head, member, slot, promptBlocks);
}

template <int D, int BN>
__global__ void __launch_bounds__(32 * kWarps) decodeAttention(const Arguments a) {
  extern __shared__ __align__(128) __nv_bfloat16 memory[];
  const int tiles = (a.groupSize * (a.heads / a.kvHeads) + kRows - 1) / kRows;
  const int fours = (a.groupSize + kWarps - 1) / kWarps;
  const int pairs = a.groups * a.kvHeads, perPair = tiles * a.chunks;
  if (static_cast<int>(blockIdx.x) < pairs * perPair) {
    const int pair = blockIdx.x % pairs, rest = blockIdx.x / pairs;
    promptBlock<D, BN>(a, memory, pair / a.kvHeads, pair % a.kvHeads, rest % tiles, rest / tiles);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(a.arrived + 2 * pair, 1u);
  } else {
    const int index = blockIdx.x - pairs * perPair, pair = index % pairs;
    ownBlock<D, BN>(a, memory, pair / a.kvHeads, pair % a.kvHeads, index / pairs, perPair);
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(a.arrived + 2 * pair + 1, 1u) == static_cast<unsigned>(fours - 1)) {
      a.arrived[2 * pair] = a.arrived[2 * pair + 1] = 0;  // nobody waits any more; ready for the next launch
    }
  }
}

template <int D, int BN>
constexpr int sharedBytes() {
  constexpr int prompt = kStages * 2 * BN * D, own = kWarps * kPieces * kPieceRows * D;
  return (kRows * D + (prompt > own ? prompt : own)) * static_cast<int>(sizeof(__nv_bfloat16));
}

template <int D, int BN>
int launch(const Arguments& a, cudaStream_t stream) {
  const int bytes = sharedBytes<D, BN>();
  const cudaError_t status = cudaFuncSetAttribute(decodeAttention<D, BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  const int tiles = (a.groupSize * (a.heads / a.kvHeads) + kRows - 1) / kRows;
  const int fours = (a.groupSize + kWarps - 1) / kWarps;
  decodeAttention<D, BN><<<a.groups * a.kvHeads * (tiles * a.chunks + fours), 32 * kWarps, bytes, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

// The launcher; its contract is GroveDecodeAttentionLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_decode_attention(
    const void* qkv, const void* cos, const void* sin, void* ownK, void* ownV, const void* promptK, const void* promptV, const int* rows,
    const int* promptStart, const int* promptLength, const int* ownLength, void* out, float* partial, float* partialLse, unsigned* arrived,
    int groups, int groupSize, int heads, int kvHeads, int headDim, int ownSlots, int chunks, int chunkKeys, float scale, void* stream) {
  using T = __nv_bfloat16;
  const Arguments a{static_cast<const T*>(qkv), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(ownK),
                    static_cast<T*>(ownV), static_cast<const T*>(promptK), static_cast<const T*>(promptV), rows, promptStart, promptLength,
                    ownLength, static_cast<T*>(out), partial, partialLse, arrived, groups, groupSize, heads, kvHeads, ownSlots, chunks,
                    chunkKeys, scale, static_cast<float>(scale * 1.4426950408889634)};
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
  return (headDim == 128 && most >= sharedBytes<128, 64>()) || (headDim == 64 && most >= sharedBytes<64, 128>());
}
