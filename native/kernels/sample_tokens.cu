// grove_sample_tokens, grove_token_logprobs: what they compute stands in native/sample_tokens.cc, sample_row.h and token_logprobs.cc.
//
// Two kernels, three with top-k or top-p. tileKernel reads the logits, a warp for every 1,024 of a row, and leaves five sums of each: bound by
// memory where the temperature is 1, by the exponential units where it is not. finishKernel gives each row a block: it adds the sums up, finds the
// tile in which the cumulative weight passes u times the total, reads that tile again, and advances the slot. It is all latency, hence little code
// and loads together. cutKernel, before them, finds where top-k and top-p cut. A row's result depends on nothing but the row.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <limits.h>
#include <stdint.h>

#include <type_traits>

#include "launch.cuh"
#include "sampling_cuts.cuh"
#include "softmax_tiles.cuh"

namespace {

struct Draws {
  const int *source, *slot;
  const uint32_t *forbidden, *stops;
  const int *key, *limit;
  int64_t *tokens, *ropePositions;
  int *ownLength, *done, *ids;
  float *logprobs, *sampledLogprobs, *entropies;
  const float* cuts;  // [n], or null where nothing is cut
  int slots, room;
  float temperature, exponentScale;  // log2(e) / temperature
  bool greedy;

  // Whether there is anything to draw for a slot, which may be -1.
  __device__ __forceinline__ bool runs(int s) const {
    if (s < 0) return false;
    const int ended = done[s], drawn = ownLength[s] + 1;  // fetched together
    return ended == 0 && drawn < room;
  }
  __device__ __forceinline__ float cut(int draw) const { return cuts == nullptr ? -CUDART_INF_F : cuts[draw]; }
};

// Of the 1,024 ids of a tile, one bit each: lane l has those of ids 32 l to 32 l + 31. Set where they are excluded.
__device__ __forceinline__ uint32_t excludedIds(const uint32_t* forbidden, int tile, int lane, int vocab) {
  const int word = tile * 32 + lane;
  return word < (vocab + 31) / 32 ? forbidden[word] : 0;
}

// Sets logits of pack p that may not be drawn to minus infinity.
__device__ __forceinline__ void keepAllowed(float (&x)[kPack], uint32_t excludedIds, float cut, int p, int lane) {
  const uint32_t excluded = __shfl_sync(kAll, excludedIds, 8 * p + lane / 4) >> (8 * (lane % 4));
#pragma unroll
  for (int i = 0; i < kPack; i++) x[i] = (excluded >> i & 1) || !(x[i] >= cut) ? -CUDART_INF_F : x[i];
}

// Weight of a logit in the distribution drawn from; 0 at minus infinity.
__device__ __forceinline__ float keptWeight(float x, float base, float scale) {
  return exp2Approximate(__fmul_rn(__fsub_rn(x, base), scale));
}

template <class T, bool kAligned, bool kDraws>
__global__ __launch_bounds__(32 * kLaneTiles) void tileKernel(const T* logits, int vocab, TileSums sums, Draws draws) {
  letNextStart();
  waitForPrevious();
  const int lane = threadIdx.x % 32, tile = blockIdx.y * kLaneTiles + threadIdx.x / 32, row = blockIdx.x;
  const int slot = kDraws ? draws.slot[row] : 0, source = kDraws ? draws.source[row] : row;
  const T* from = logits + static_cast<int64_t>(slot < 0 ? 0 : source) * vocab;
  float x[kPacks][kPack];
  loadTile<kAligned>(from, tile, lane, vocab, x);  // on their way while the slot is looked at
  const uint32_t excluded = kDraws ? excludedIds(draws.forbidden, tile, lane, vocab) : 0;
  if (kDraws && !draws.runs(slot)) return;
  const SoftmaxSums plain = sumTile(x);
  if (lane == 0) {
    sums.row(kMax, row)[tile] = plain.max;
    sums.row(kSum, row)[tile] = plain.sum;
    sums.row(kWeighted, row)[tile] = plain.weighted;
  }
  if (!kDraws) return;
  const bool whole = draws.cuts == nullptr && __all_sync(kAll, excluded == 0);
  float max = plain.max, sum = plain.sum;
  if (!whole) {
    const float cut = draws.cut(row);
    max = -CUDART_INF_F;
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      keepAllowed(x[p], excluded, cut, p, lane);
#pragma unroll
      for (int i = 0; i < kPack; i++) max = fmaxf(max, x[p][i]);
    }
    max = warpMax(max);
  }
  if (!draws.greedy && (!whole || draws.temperature != 1)) {
    const float base = finiteBase(max);
    sum = 0;
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
#pragma unroll
      for (int i = 0; i < kPack; i++) sum += keptWeight(x[p][i], base, draws.exponentScale);
    }
    sum = warpSum(sum);
  }
  if (lane == 0) {
    sums.row(kKeptMax, row)[tile] = max;
    sums.row(kKeptSum, row)[tile] = sum;
  }
}

// The number in [0, 1) that chooses the token at a position: 24 bits of Philox4x32-10 (src/rollout/philox.ts).
__device__ float philoxUniform(uint32_t key0, uint32_t key1, uint32_t position) {
  uint32_t a = position, b = 0, c = 0, d = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t a1 = __umulhi(0xcd9e8d57u, c) ^ b ^ key0, c1 = __umulhi(0xd2511f53u, a) ^ d ^ key1;
    b = 0xcd9e8d57u * c;
    d = 0xd2511f53u * a;
    a = a1;
    c = c1;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return static_cast<float>(a >> 8) * 0x1p-24f;
}

// The distribution to draw from. Greedy is the same with all weight on the largest logits and u = 0: the first of them.
struct Kept {
  float max, sum;  // the largest logit kept; sum of weights relative to it
  float base, scale;
  bool greedy;
  __device__ __forceinline__ float weight(float x) const { return greedy ? (x == max ? 1.f : 0.f) : keptWeight(x, base, scale); }
};

// A place in a row's cumulative weight.
struct Place {
  int tile;
  float rest;  // how much of the tile's weight lies before it, 0 to just below 1
};

// Where the cumulative weight passes u times the total, for all lanes; never in a tile of weight 0. Completes `kept`.
__device__ __forceinline__ Place findTile(const LaneSums& maxOf, const LaneSums& sumOf, int lane, float u, Kept& kept) {
  kept.max = warpMax(maxOf);
  kept.base = finiteBase(kept.max);
  float weight[kLaneTiles], own = 0;
#pragma unroll
  for (int k = 0; k < kLaneTiles; k++) own += weight[k] = __fmul_rn(kept.weight(maxOf[k]), kept.greedy ? 1.f : sumOf[k]);
  const float reached = warpScan(own, lane), preceding = __shfl_up_sync(kAll, reached, 1);
  kept.sum = __shfl_sync(kAll, reached, 31);
  const float target = u * kept.sum;
  const unsigned filled = __ballot_sync(kAll, own > 0), passed = __ballot_sync(kAll, own > 0 && reached > target);
  const int chosen = passed != 0 ? __ffs(passed) - 1 : filled != 0 ? 31 - __clz(filled) : 0;
  float at = lane == 0 ? 0.f : preceding, before = 0, inTile = 1;
  int tile = 0;
  bool found = false;
#pragma unroll
  for (int k = 0; k < kLaneTiles; k++) {
    if (weight[k] > 0 && !found) tile = k, before = at, inTile = weight[k];
    at += weight[k];
    found = found || (weight[k] > 0 && at > target);
  }
  const float rest = fminf(fmaxf((target - before) / inTile, 0.f), 1.f - 0x1p-24f);
  return {chosen * kLaneTiles + __shfl_sync(kAll, tile, chosen), __shfl_sync(kAll, rest, chosen)};
}

// The entry of a tile where its cumulative weight passes `rest` of it; where rounding leaves none, the last one of a weight above 0. By a block of
// kPacks warps, of which each has one pack per lane.
__device__ __forceinline__ int findEntry(const float (&weight)[kPack], int warp, int lane, float rest) {
  __shared__ float totals[kPacks];
  __shared__ int firsts[kPacks], lasts[kPacks];
  float own = 0;
#pragma unroll
  for (int i = 0; i < kPack; i++) own += weight[i];
  const float reached = warpScan(own, lane), preceding = __shfl_up_sync(kAll, reached, 1);
  if (lane == 31) totals[warp] = reached;
  __syncthreads();
  float sum = 0, at = 0;
#pragma unroll
  for (int p = 0; p < kPacks; p++) {
    if (p == warp) at = sum;
    sum += totals[p];
  }
  if (lane > 0) at += preceding;
  const float target = rest * sum;
  int first = INT_MAX, last = 0;
#pragma unroll
  for (int i = 0; i < kPack; i++) {
    const int entry = (32 * warp + lane) * kPack + i;
    at += weight[i];
    if (weight[i] > 0) {
      last = entry;
      if (at > target) first = min(first, entry);
    }
  }
  first = __reduce_min_sync(kAll, first);
  last = __reduce_max_sync(kAll, last);
  if (lane == 0) firsts[warp] = first, lasts[warp] = last;
  __syncthreads();
#pragma unroll
  for (int p = 0; p < kPacks; p++) first = min(first, firsts[p]), last = max(last, lasts[p]);
  return first != INT_MAX ? first : last;
}

template <class T, bool kAligned>
__global__ __launch_bounds__(32 * kPacks) void finishKernel(const T* logits, int vocab, TileSums tiles, Draws draws) {
  letNextStart();
  waitForPrevious();
  const int i = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // All that is needed at first is fetched together; every warp finds the tile for itself.
  const int slot = draws.slot[i], s = max(slot, 0);
  const T* row = logits + static_cast<int64_t>(draws.source[i]) * vocab;
  const float cut = draws.cut(i);
  float sums[kPlanes][kLaneTiles];
#pragma unroll
  for (int plane = 0; plane < kPlanes; plane++) loadSums(tiles, plane, i, lane, sums[plane]);
  const int position = draws.ownLength[s] + 1, limit = draws.limit[s], key0 = draws.key[2 * s], key1 = draws.key[2 * s + 1];
  if (!draws.runs(slot)) return;

  Kept kept{0, 0, 0, draws.exponentScale, draws.greedy};
  const Place place = findTile(sums[kKeptMax], sums[kKeptSum], lane, draws.greedy ? 0.f : philoxUniform(key0, key1, position), kept);
  float x[kPack];
  loadPack<kAligned>(row, place.tile * kTile + threadIdx.x * kPack, vocab, x);
  keepAllowed(x, excludedIds(draws.forbidden, place.tile, lane, vocab), cut, warp, lane);
#pragma unroll
  for (int k = 0; k < kPack; k++) x[k] = kept.weight(x[k]);
  const int entry = place.tile * kTile + findEntry(x, warp, lane, place.rest);
  if (warp != 0) return;

  const int id = entry < vocab ? entry : 0;  // 0: all is NaN
  const float logit = widen(row[id]);
  const uint32_t stops = draws.stops[id / 32];
  const SoftmaxSums plain = sumRow(sums[kMax], sums[kSum], sums[kWeighted]);
  if (lane < 3) draws.ropePositions[static_cast<int64_t>(lane) * draws.slots + s]++;
  if (lane != 0) return;
  const int64_t at = static_cast<int64_t>(s) * draws.room + position;
  draws.ids[at] = id;
  draws.logprobs[at] = logprobOf(logit, plain);
  draws.sampledLogprobs[at] = draws.greedy ? 0.f : (logit - kept.max) / draws.temperature - logf(kept.sum);
  draws.entropies[at] = entropyOf(plain);
  draws.tokens[s] = id;
  draws.ownLength[s] = position;
  draws.done[s] = (stops >> (id % 32) & 1) || position + 1 >= limit;
}

template <class T, bool kAligned>
__global__ __launch_bounds__(kCutThreads) void cutKernel(const T* logits, int vocab, Draws draws, Cuts cuts, float* out) {
  letNextStart();
  waitForPrevious();
  extern __shared__ float histogram[];
  const int i = blockIdx.x;
  if (!draws.runs(draws.slot[i])) return;
  const float cut = CutFinder<T, kAligned>(logits + static_cast<int64_t>(draws.source[i]) * vocab, draws.forbidden, vocab, histogram).find(cuts);
  if (threadIdx.x == 0) out[i] = cut;
}

template <class T>
__global__ void logprobKernel(const T* logits, const int64_t* ids, int vocab, TileSums tiles, float* logprob, float* entropy) {
  letNextStart();
  waitForPrevious();
  const int row = blockIdx.x, lane = threadIdx.x;
  float sums[3][kLaneTiles];
#pragma unroll
  for (int plane = 0; plane < 3; plane++) loadSums(tiles, plane, row, lane, sums[plane]);
  const float logit = widen(logits[static_cast<int64_t>(row) * vocab + ids[row]]);
  const SoftmaxSums all = sumRow(sums[kMax], sums[kSum], sums[kWeighted]);
  if (lane != 0) return;
  logprob[row] = logprobOf(logit, all);
  entropy[row] = entropyOf(all);
}

template <class Kernel, class T>
cudaError_t launchTiles(Kernel kernel, const T* logits, int vocab, const TileSums& sums, const Draws& draws, cudaStream_t stream) {
  return launchChained(kernel, dim3(sums.rows, sums.stride / kLaneTiles), 32 * kLaneTiles, 0, stream, logits, vocab, sums, draws);
}

template <class T, bool kAligned>
cudaError_t sample(const T* logits, int rows, int vocab, float* scratch, Draws draws, const Cuts& cuts, cudaStream_t stream) {
  const TileSums sums{scratch, rows, tileStride(vocab)};
  cudaError_t status = cudaSuccess;
  if (!draws.greedy && (cuts.topK > 0 || cuts.topP < 1)) {
    float* found = sums.at + static_cast<int64_t>(kPlanes) * rows * sums.stride;
    status = cudaFuncSetAttribute(cutKernel<T, kAligned>, cudaFuncAttributeMaxDynamicSharedMemorySize, kCutSharedBytes);
    if (status != cudaSuccess) return status;
    status = launchChained(cutKernel<T, kAligned>, rows, kCutThreads, kCutSharedBytes, stream, logits, vocab, draws, cuts, found);
    if (status != cudaSuccess) return status;
    draws.cuts = found;
  }
  status = launchTiles(tileKernel<T, kAligned, true>, logits, vocab, sums, draws, stream);
  if (status != cudaSuccess) return status;
  return launchChained(finishKernel<T, kAligned>, rows, 32 * kPacks, 0, stream, logits, vocab, sums, draws);
}

template <class T, bool kAligned>
cudaError_t tokenLogprobs(const T* logits, const int64_t* ids, int rows, int vocab, float* logprob, float* entropy, float* scratch,
                          cudaStream_t stream) {
  const TileSums sums{scratch, rows, tileStride(vocab)};
  const cudaError_t status = launchTiles(tileKernel<T, kAligned, false>, logits, vocab, sums, Draws{}, stream);
  if (status != cudaSuccess) return status;
  return launchChained(logprobKernel<T>, rows, 32, 0, stream, logits, ids, vocab, sums, logprob, entropy);
}

// Calls f(logits of their type, whether packs of them are aligned).
template <class F>
int withType(const void* logits, int isBfloat16, int vocab, F f) {
  const bool aligned = vocab % kPack == 0 && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
  const auto call = [&](auto* data) { return aligned ? f(data, std::true_type{}) : f(data, std::false_type{}); };
  return isBfloat16 ? call(static_cast<const __nv_bfloat16*>(logits)) : call(static_cast<const float*>(logits));
}

}  // namespace

#define GROVE_EXPORT extern "C" __attribute__((visibility("default")))

// Contracts: native/kernels.h.
GROVE_EXPORT int64_t grove_sample_scratch(int64_t rows, int64_t vocab) {
  return vocab > kMaxVocab ? 0 : rows * (kPlanes * tileStride(static_cast<int>(vocab)) + 1);
}

GROVE_EXPORT int grove_sample_tokens(const void* logits, int isBfloat16, const int* source, const int* slot, const int* forbidden, const int* stops,
                                     const int* key, const int* limit, int64_t* tokens, int64_t* ropePositions, int* ownLength, int* done, int* ids,
                                     float* logprobs, float* sampledLogprobs, float* entropies, float* scratch, int n, int vocab, int slots, int room,
                                     float temperature, int topK, float topP, int greedy, void* stream) {
  const Cuts cuts{topK, topP, kLog2E / temperature};
  Draws draws = {};
  draws.source = source, draws.slot = slot;
  draws.forbidden = reinterpret_cast<const uint32_t*>(forbidden), draws.stops = reinterpret_cast<const uint32_t*>(stops);
  draws.key = key, draws.limit = limit;
  draws.tokens = tokens, draws.ropePositions = ropePositions;
  draws.ownLength = ownLength, draws.done = done, draws.ids = ids;
  draws.logprobs = logprobs, draws.sampledLogprobs = sampledLogprobs, draws.entropies = entropies;
  draws.slots = slots, draws.room = room;
  draws.temperature = temperature, draws.exponentScale = cuts.exponentScale;
  draws.greedy = greedy != 0;
  return withType(logits, isBfloat16, vocab, [&](const auto* data, auto aligned) {
    return sample<std::decay_t<decltype(*data)>, aligned.value>(data, n, vocab, scratch, draws, cuts, static_cast<cudaStream_t>(stream));
  });
}

GROVE_EXPORT int grove_token_logprobs(const void* logits, int isBfloat16, const int64_t* ids, float* logprob, float* entropy, float* scratch,
                                      int rows, int vocab, void* stream) {
  return withType(logits, isBfloat16, vocab, [&](const auto* data, auto aligned) {
    return tokenLogprobs<std::decay_t<decltype(*data)>, aligned.value>(data, ids, rows, vocab, logprob, entropy, scratch,
                                                                       static_cast<cudaStream_t>(stream));
  });
}
